"""All that comes before the first step: what needs no weights, then what does."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qlora_core.data.collate import Batch, collator, padding_of
from qlora_core.data.prepare import PreparedData, prepare_data
from qlora_core.data.tokenizer import load_tokenizer
from qlora_core.errors import BadInput
from qlora_core.models.adapter_checks import check_gradients
from qlora_core.models.adapters import attach, enable_checkpointing
from qlora_core.models.coverage import with_structure
from qlora_core.models.devices import choose_compute_dtype, choose_device, memory_of, parse_dtype
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.memory_plan import MemoryPlan
from qlora_core.registry.detect import detect, installed
from qlora_core.registry.detection import Detection
from qlora_core.registry.manager import Registry
from qlora_core.training.batches import Batches, seed_of
from qlora_core.training.loop import Gradients, Loop, accumulate
from qlora_core.training.optimizers import (
    build_optimizer,
    build_schedule,
    default_learning_rate,
    optimizer_name,
    require_warmup,
)
from qlora_core.training.packs import pack_budget
from qlora_core.training.planning import Planning, steps_of
from qlora_core.training.positions import length_of_samples, require_positions, with_length_checked
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes
from qlora_core.training.schema import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything about a run that is known without opening a weight."""

    given: TrainSettings
    """As the user gave them."""
    settings: TrainSettings
    """The same with ``max_length`` filled in."""
    registry: Registry
    detection: Detection
    device: torch.device
    compute_dtype: torch.dtype
    tokenizer: Any
    data: PreparedData
    planning: Planning
    plan: MemoryPlan
    """Of one step: as supposed before the run, then as the step is computed."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.plan.gradient_checkpointing

    @property
    def collate(self) -> Callable[[Sequence[Any]], Batch]:
        """From samples to a padded micro-batch."""
        most = self.settings.max_length
        return collator(self.tokenizer, multiple_of=padding_of(self.device), most=most)

    @property
    def pack_tokens(self) -> int:
        """Tokens of a micro-batch where samples are packed."""
        longest = max(len(sample["input_ids"]) for sample in self.data.train)
        return pack_budget(longest, self.settings.batch_size, self.device.type)

    def batches(self, processes: Processes) -> Batches:
        """The training samples as groups for this process."""
        return Batches(
            samples=self.data.train,
            collate=self.collate,
            batch_size=self.settings.batch_size,
            accumulation=self.settings.gradient_accumulation,
            seed=self.settings.seed,
            rank=processes.rank,
            processes=processes.count,
        )


def registry_for(settings: TrainSettings, registry: Registry | None = None) -> Registry:
    """The registry that the settings ask for, unless one is given; it has all their trackers.

    Raises BadInput for a tracker that is no active plugin: nothing would be written for it.
    """
    if registry is None and (settings.plugin or settings.block):
        registry = Registry.from_environment(files=settings.plugin, block=settings.block)
    registry = registry or installed()
    active = [record.name for record in registry.records if record.status == "active"]
    for name in settings.trackers:
        if name not in active:
            raise BadInput(
                f"trackers: no active plugin is called {name!r}: nothing would be written for it",
                "`qlora-core plugins` lists them; ours is tensorboard",
            )
    return registry


def place_of(settings: TrainSettings) -> tuple[torch.device, torch.dtype]:
    """Device and compute dtype: as asked, else as the hardware has it."""
    device = choose_device(None if settings.device == "auto" else settings.device)
    if settings.compute_dtype == "auto":
        return device, choose_compute_dtype(device)
    return device, parse_dtype(settings.compute_dtype)


def detect_model(settings: TrainSettings, registry: Registry) -> Detection:
    """What the model is, checked against its structure. Raises BadInput, DetectionError."""
    detection = detect(
        settings.model,
        architecture=settings.architecture,
        targets=settings.targets,
        registry=registry,
        revision=settings.revision,
        offline=settings.offline,
    )
    if settings.trust_remote_code and detection.config.get("auto_map"):
        return detection  # its class is not known before its code has run
    return with_structure(detection, rank=settings.rank)


def read_inputs(
    settings: TrainSettings, detection: Detection, registry: Registry, *, side_file: Path | None
) -> Inputs:
    """Tokenizer, samples and memory plan. Raises BadInput for what cannot be used."""
    device, dtype = place_of(settings)
    optimizer_name(settings, device)
    given = settings
    length = length_of_samples(given, detection)
    settings = dataclasses.replace(given, max_length=length)
    detection = with_length_checked(detection, length)
    tokenizer = load_tokenizer(
        settings.model,
        detection.architecture,
        revision=settings.revision,
        offline=settings.offline,
        trust_remote_code=settings.trust_remote_code,
        registry=registry,
    )
    data = prepare_data(settings, tokenizer, detection.architecture, side_file=side_file)
    planning = Planning.of(settings, detection, data, device, dtype)
    plan = planning.supposed()
    return Inputs(
        given=given, settings=settings, registry=registry, detection=detection, device=device,
        compute_dtype=dtype, tokenizer=tokenizer, data=data, planning=planning, plan=plan,
    )  # fmt: skip


def load_base(inputs: Inputs) -> LoadedModel:
    """The frozen base model in 4 bits."""
    settings = inputs.settings
    return load_model(
        settings.model,
        architecture=settings.architecture,
        compute_dtype=inputs.compute_dtype,
        device=str(inputs.device),
        quantize=None if settings.quantize == "none" else settings.quantize,
        double_quantization=settings.double_quantization,
        revision=settings.revision,
        offline=settings.offline,
        trust_remote_code=settings.trust_remote_code,
        registry=inputs.registry,
    )


def attach_adapters(inputs: Inputs, loaded: LoadedModel) -> PeftModel:
    """Adapters that start from the seed alone, and what the memory plan asks for."""
    settings = inputs.settings
    torch.manual_seed(seed_of(settings.seed, "adapters"))
    require_positions(loaded.model, settings.max_length or 0)
    model = attach(
        loaded.model,
        architecture=inputs.detection.architecture,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        rslora=settings.rslora,
        dora=settings.dora,
    )
    if inputs.gradient_checkpointing:
        enable_checkpointing(loaded.model)
    return model


def build_loop(
    inputs: Inputs,
    model: PeftModel,
    processes: Processes,
    precision: Precision,
    *,
    rate: float,
    total: int,
    gradients: Gradients = accumulate,
) -> Loop:
    """Optimizer, schedule and loop over the model's adapters."""
    settings = inputs.settings
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(settings, parameters, inputs.device, rate)
    schedule = build_schedule(
        optimizer, name=settings.schedule, warmup=settings.warmup, total=total
    )
    return Loop(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        processes=processes,
        max_gradient_norm=settings.max_gradient_norm,
        seed=settings.seed,
        gradients=gradients,
        check=check_gradients,
    )


def total_steps(settings: TrainSettings, batches: Batches) -> int:
    """Optimizer steps of the whole run. Raises BadInput for a warm-up longer than it."""
    total = steps_of(settings, batches.steps_per_epoch)
    require_warmup(settings.warmup, total)
    return total


def learning_rate(settings: TrainSettings, weights: int) -> float:
    """As given, else by the number of the base model's weights."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return default_learning_rate(weights)


def hardware(inputs: Inputs) -> dict[str, Any]:
    """The machine, for the run record."""
    device = inputs.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "cores": os.cpu_count(),
        "memory_bytes": memory_of(device),
        "compute_dtype": str(inputs.compute_dtype).removeprefix("torch."),
    }
