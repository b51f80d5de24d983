"""Who trains: TRL, transformers with PEFT, and ours, on the same model and the same batches.

A contestant is a function from batches to nothing: an optimizer step per batch. Models are opened
for the contestants that are asked for only; several contestants of one kind share one model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import peft
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from benchmarks.batches import BATCH, flattened, unpadded
from benchmarks.field import BY_HAND, Field, optimizer_of, train
from benchmarks.measuring import RANK, Batch, Contestant
from benchmarks.models import lora, theirs
from qlora_core.kernels import fast_layers, fast_linears, packing
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.head_probe import LabelHead, Unfit, find_head
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.training.losses import Loss, label_only_loss, learned_tokens, summed_loss
from qlora_core.training.roads import packed_loss


def trl_contestants(place: Field) -> dict[str, Contestant]:
    """SFTTrainer's own step: as it comes, and at its best on a CPU.

    At its best: no recomputation, and the rows that its padding-free collator makes of the very
    same samples, as best-fit packing does; its fused head and bfloat16 are on by default.
    """
    rows = Dataset.from_list([{"prompt": "w1 w2 ", "completion": "w3"}] * 8)
    settings = SFTConfig(
        output_dir=str(place.folder.parent / "trl"), per_device_train_batch_size=BATCH,
        max_steps=1, use_cpu=place.device.type == "cpu", bf16=True, report_to=[],
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=theirs(place.folder, place.device), args=settings, train_dataset=rows,
        processing_class=place.tokenizer, peft_config=lora(),
    )  # fmt: skip
    trainer.model.train()
    collate = DataCollatorForLanguageModeling(place.tokenizer.pad_token_id, padding_free=True)
    step = partial(trl_step, trainer, optimizer_of(trainer.model))
    return {
        "TRL default": partial(step, settings.gradient_checkpointing, dict),
        "TRL at its best": partial(step, False, lambda batch: collate(unpadded(batch))),
    }


def trl_step(
    trainer: Any,
    optimizer: torch.optim.Optimizer,
    checkpointing: bool,
    laid_out: Callable[[Batch], dict[str, Any]],
    batches: list[Batch],
) -> None:
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        trainer.model.enable_input_require_grads()
    else:
        trainer.model.gradient_checkpointing_disable()
        trainer.model.disable_input_require_grads()
    for batch in batches:
        count = torch.tensor(learned_tokens(batch), device=batch["labels"].device)
        trainer.training_step(trainer.model, laid_out(batch), num_items_in_batch=count)
        optimizer.step()
        optimizer.zero_grad()


def transformers_contestants(place: Field) -> dict[str, Contestant]:
    """transformers' own loss on a PEFT model, padded and flattened."""
    model = peft.get_peft_model(theirs(place.folder, place.device), lora()).train()
    optimizer = optimizer_of(model)

    def run(flat: bool, checkpointing: bool) -> Contestant:
        def loss(batch: Batch) -> Tensor:
            given = flattened(batch) if flat else batch
            with place.precision.autocast():
                found: Tensor = model(**given, use_cache=False).loss
            return found

        return partial(train, model, optimizer, loss, checkpointing=checkpointing)

    return {
        "transformers padded, recomputing": run(flat=False, checkpointing=True),
        "transformers flattened, recomputing": run(flat=True, checkpointing=True),
        "transformers padded": run(flat=False, checkpointing=False),
        "transformers flattened": run(flat=True, checkpointing=False),
    }


@dataclass
class Ours:
    """Our model as a run has it, up to its layers."""

    place: Field
    model: Any
    parts: LabelHead
    optimizer: torch.optim.Optimizer

    @classmethod
    def opened(cls, place: Field) -> Ours:
        """NF4 base, adapters, parts of the head. Raises Unfit."""
        device = str(place.device)
        loaded = load_model(place.folder, compute_dtype=torch.bfloat16, device=device)
        model = attach(loaded.model, rank=RANK)
        parts = find_head(model, place.precision.autocast)
        return cls(place, model.train(), parts, optimizer_of(model))

    def run(self, loss: Loss, **how: Any) -> Contestant:
        """Steps on the mean of ``loss``."""

        def mean(batch: Batch) -> Tensor:
            with self.place.precision.autocast():
                return loss(self.model, batch) / learned_tokens(batch)

        return partial(train, self.model, self.optimizer, mean, **how)

    def pack(self) -> Loss:
        """Let the model take packed rows. Raises Unfit."""
        packing.prepare(self.model.get_base_model(), self.parts, self.place.precision.autocast)
        self.model.train()
        return packed_loss(self.parts)

    def layers_by_hand(self) -> FastLayers:
        """After ``pack``. Raises Unfit."""
        autocast = self.place.precision.autocast
        fast = fast_layers.install(self.model.get_base_model(), self.parts, autocast)
        self.model.train()
        return fast

    def fuse_linears(self) -> None:
        """In all layers, none of which is by hand. Raises Unfit."""
        autocast = self.place.precision.autocast
        fast_linears.install(self.model.get_base_model(), self.parts, autocast, but=())
        self.model.train()


def our_contestants(place: Field) -> dict[str, Contestant]:
    """What a run does, step by step of what is switched on."""
    ours = Ours.opened(place)
    found = {
        "ours --plain, recomputing": ours.run(summed_loss, checkpointing=True),
        "ours padded, recomputing": ours.run(label_only_loss(ours.parts), checkpointing=True),
    }
    try:
        packed = ours.pack()
        if place.device.type not in BY_HAND:
            return found | _by_own_layers(place, ours, packed)
        fast = ours.layers_by_hand()
    except Unfit as reason:
        left = set(NAMES["ours"]) - set(found)
        place.absent |= dict.fromkeys(sorted(left), f"its layers stay as they are: {reason}")
        return found

    def hand(room: float, compiled: bool) -> Contestant:
        return ours.run(packed, ready=lambda: _set(fast, room, compiled, place.precision.dtype))

    return found | {
        "ours eager, recomputing": hand(0.0, compiled=False),
        "ours eager": hand(math.inf, compiled=False),
        "ours, recomputing": hand(0.0, compiled=True),
        "ours": hand(math.inf, compiled=True),
    }


def _by_own_layers(place: Field, ours: Ours, packed: Loss) -> dict[str, Contestant]:
    """What a run does on a GPU: label-only head and packed rows, no more."""
    eager = ("ours eager, recomputing", "ours eager")
    place.absent |= dict.fromkeys(eager, f"nothing is compiled on {place.device.type}: it is ours")
    return {
        "ours, recomputing": ours.run(packed, checkpointing=True),
        "ours": ours.run(packed, checkpointing=False),
    }


def generic_contestants(place: Field) -> dict[str, Contestant]:
    """A family without a layer by hand: label-only head, packed rows, linear layers fused."""
    if place.device.type not in BY_HAND:
        raise Unfit(f"no linear layers are fused on {place.device.type}: it is ours")
    ours = Ours.opened(place)
    packed = ours.pack()
    ours.fuse_linears()
    return {
        "ours generic, recomputing": ours.run(packed, checkpointing=True),
        "ours generic": ours.run(packed, checkpointing=False),
    }


def _set(fast: FastLayers, room: float, compiled: bool, dtype: torch.dtype) -> None:
    """``room`` 0 recomputes every layer, infinity none."""
    fast.keep_within(room, 1)
    fast.elementwise.compiled = (_compiled(fast, dtype) if compiled else None) or {}


@cache
def _compiled(fast: FastLayers, dtype: torch.dtype) -> Any:
    """Once; None, said aloud, where nothing can be compiled: the tiles run then."""
    try:
        print(f"compiled in {fast.compile(dtype):.1f} s", flush=True)
    except Unfit as reason:
        print(reason, flush=True)
        return None
    return fast.elementwise.compiled


KINDS: dict[str, Callable[[Field], dict[str, Contestant]]] = {
    "TRL": trl_contestants,
    "transformers": transformers_contestants,
    "ours": our_contestants,
    "generic": generic_contestants,
}
NAMES = {
    "TRL": ("TRL default", "TRL at its best"),
    "transformers": (
        "transformers padded, recomputing", "transformers flattened, recomputing",
        "transformers padded", "transformers flattened",
    ),
    "ours": (
        "ours --plain, recomputing", "ours padded, recomputing", "ours eager, recomputing",
        "ours eager", "ours, recomputing", "ours",
    ),
    "generic": ("ours generic, recomputing", "ours generic"),
}  # fmt: skip
COMPILED = ("ours, recomputing", "ours")
ALL = tuple(name for names in NAMES.values() for name in names)


def contestants(place: Field, wanted: list[str]) -> dict[str, Contestant]:
    """Those of ``wanted`` that can run here, in that order; the others are in ``place.absent``."""
    found: dict[str, Contestant] = {}
    for kind, names in NAMES.items():
        asked = [name for name in names if name in wanted]
        if not asked:
            continue
        try:
            found |= KINDS[kind](place)
        except Unfit as reason:
            place.absent |= dict.fromkeys(asked, str(reason))
    for name in place.absent:
        print(f"{name} does not run: {place.absent[name]}", flush=True)
    return {name: found[name] for name in wanted if name in found}
