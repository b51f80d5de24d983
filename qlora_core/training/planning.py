"""The memory plan of a run: from its settings and data, and again for the road that it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qlora_core.data.collate import padded, padding_of
from qlora_core.data.prepare import PreparedData
from qlora_core.models.devices import free_memory_of
from qlora_core.models.memory import Load, Planner
from qlora_core.models.memory_plan import MemoryPlan
from qlora_core.models.step_memory import PLAIN, Way, fast_way
from qlora_core.registry.detection import Detection
from qlora_core.training.optimizers import optimizer_name
from qlora_core.training.packs import pack_budget
from qlora_core.training.roads import Road
from qlora_core.training.schema import EPOCHS, TrainSettings

FITS = 0.9
"""The share of the free memory that a plan may use."""


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What plans of this run are made from."""

    settings: TrainSettings
    device: torch.device
    planner: Planner
    load: Load
    limit: float
    """Bytes that the process may take, as things stood before it loaded anything."""

    @classmethod
    def of(
        cls, settings: TrainSettings, detection: Detection, data: PreparedData,
        device: torch.device, dtype: torch.dtype,
    ) -> Planning:  # fmt: skip
        """For samples as they were prepared; ``settings.max_length`` is filled in."""
        planner = Planner.of(
            detection, rank=settings.rank, targets=settings.targets,
            optimizer=optimizer_name(settings, device), compute_dtype=dtype,
            quantize=None if settings.quantize == "none" else settings.quantize,
            double_quantization=settings.double_quantization, device=device.type,
        )  # fmt: skip
        load = _load(settings, data, device)
        limit = memory_limit(settings, device)
        return cls(settings=settings, device=device, planner=planner, load=load, limit=limit)

    def supposed(self) -> MemoryPlan:
        """Before the run: as if no probe refused what the structure allows."""
        way = PLAIN if self.settings.plain else fast_way(self.device.type)
        if not self.settings.packing:
            way = dataclasses.replace(way, packed=False, by_hand=False)
        if self.settings.dora:  # its adapters are computed by PEFT alone
            way = dataclasses.replace(way, by_hand=False, fused=False)
        return self._fitting(partial(self.planner.suppose, self.load, way))

    def taken(self, road: Road, record: Mapping[str, Any], *, recomputing: bool) -> MemoryPlan:
        """For the ``road`` of the run; ``record`` is what was noted when it was chosen.

        Where the model is ``recomputing`` activations already, it stays so.
        """
        way = Way(
            label_only=record["head"] == "label-only",
            packed=road.packed,
            by_hand=road.fast is not None,
            fused=record.get("linears", "own") != "own",
            refused=frozenset(road.fast.refused if road.fast else ()),
        )
        make = partial(self.planner.plan, self.load, way)
        return make(gradient_checkpointing=True) if recomputing else self._fitting(make)

    def _fitting(self, make: Callable[..., MemoryPlan]) -> MemoryPlan:
        """With activations recomputed or not: as asked for, else as the memory allows."""
        if self.settings.gradient_checkpointing != "auto":
            return make(gradient_checkpointing=self.settings.gradient_checkpointing == "on")
        saved = make(gradient_checkpointing=False)
        return saved if saved.total <= self.limit else make(gradient_checkpointing=True)


def memory_limit(settings: TrainSettings, device: torch.device) -> float:
    """Bytes that the process may take: as given, else ``FITS`` of what is free now."""
    if settings.memory_budget is not None:
        return settings.memory_budget * 1e9
    return FITS * free_memory_of(device)


def steps_of(settings: TrainSettings, per_epoch: int) -> int:
    """Optimizer steps of a run whose epochs have ``per_epoch``."""
    if settings.max_steps is not None:
        return settings.max_steps
    epochs = EPOCHS if settings.epochs is None else settings.epochs
    return max(1, math.ceil(epochs * per_epoch))


def _load(settings: TrainSettings, data: PreparedData, device: torch.device) -> Load:
    """The heaviest micro-batch there can be, and how many of different lengths."""
    own = [len(sample["input_ids"]) for sample in data.train]
    lengths = [padded(n, padding_of(device), settings.max_length) for n in own]
    group = settings.batch_size * settings.gradient_accumulation
    budget = pack_budget(max(own), settings.batch_size, device.type)
    packed = min(budget, sum(sorted(own)[-group:]))
    batches = steps_of(settings, math.ceil(len(own) / group)) * settings.gradient_accumulation
    return Load(
        tokens=max(lengths) * settings.batch_size,
        packed_tokens=packed,
        length=max(lengths),
        lengths=min(len(set(lengths)), batches),
        packed_lengths=min(packed, batches),
        learned=data.report.learned_tokens / data.report.tokens,
    )
