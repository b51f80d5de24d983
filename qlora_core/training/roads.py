"""Which road a run takes to its losses: the fast one where it is proven, else the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from qlora_core.kernels import fast_layers, fast_linears
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.head_probe import LabelHead, Unfit, find_head
from qlora_core.kernels.packing import packed_states, prepare
from qlora_core.training.losses import IGNORED, Batch, Loss, label_only_loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.runs import Run

REPAYS = 1e15
"""Operations (4 per weight and token) from which compiling is tried unasked: some 40 minutes of
two cores at 400 GFLOP/s, of which it takes one or two once and spares a few in a hundred."""


@dataclass(frozen=True)
class Road:
    """How a run computes its losses."""

    loss: Loss
    packed: bool = False
    """Whether the samples of a micro-batch lie in one row without padding."""
    padded_loss: Loss = summed_loss
    """The way for padded samples."""
    fast: FastLayers | None = None
    """The layers that compute by hand."""

    def padded(self, run: Run, reason: str) -> Road:
        """The same without packing, and without what needs it; a notice says why."""
        run.record["fast_path"] |= {"batches": "padded", "layers": "own"}
        _note(run, "padded-batches", "samples are padded, not packed", Unfit(reason))
        return Road(self.padded_loss, padded_loss=self.padded_loss)

    def summary(self, record: Mapping[str, Any]) -> str:
        """One line for people, from what was recorded."""
        words = f"{record['head']} head, {record['batches']} samples, layers: {record['layers']}"
        if "compile_seconds" in record:
            words += f", compiled in {record['compile_seconds']:.0f} s"
        if "memory" in record:
            kept = record["memory"]["layers_that"].items()
            words += " (" + ", ".join(f"{count} {what}" for what, count in kept) + ")"
        return words


def choose_road(
    run: Run, model: Any, precision: Precision, *, plain: bool, packing: bool = True
) -> Road:
    """Label-only head, packed samples, layers by hand, as far as each equals the model's own.

    Measured now and recorded in ``run.record["fast_path"]``; where the model does not allow a
    part, a notice says why. ``plain`` asks for the model's own forward, and without
    ``packing`` samples are padded. Layers are computed by hand, and linear layers fused, on CPUs
    only.
    """
    taken = run.record["fast_path"] = {"head": "plain", "batches": "padded", "layers": "own"}
    if plain:
        return Road(summed_loss)
    try:
        parts = find_head(model, precision.autocast)
    except Unfit as reason:
        _note(run, "plain-head", "logits are computed by the model's own forward", reason)
        return Road(summed_loss)
    taken["head"] = "label-only"
    on_cpu = precision.device.type == "cpu"
    road = Road(label_only_loss(parts), padded_loss=label_only_loss(parts))
    if packing and _pack(run, model, parts, precision):
        fast = _layers(run, model, parts, precision) if on_cpu else None
        road = dataclasses.replace(road, loss=packed_loss(parts), packed=True, fast=fast)
        if _writes_scores(model) and (fast is None or fast.refused):
            road = road.padded(run, "its attention writes out scores: the square of a row's tokens")
    if on_cpu:
        _linears(run, model, parts, precision, but=road.fast.layers if road.fast else ())
    return road


def _pack(run: Run, model: Any, parts: LabelHead, precision: Precision) -> bool:
    try:
        prepare(model.get_base_model(), parts, precision.autocast)
    except Unfit as reason:
        _note(run, "padded-batches", "samples are padded, not packed", reason)
        return False
    attention = model.get_base_model().config._attn_implementation
    run.record["fast_path"] |= {"batches": "packed", "attention": attention}
    return True


def _writes_scores(model: Any) -> bool:
    return getattr(model.get_base_model().config, "_attn_implementation", None) == "eager"


def _layers(run: Run, model: Any, parts: LabelHead, precision: Precision) -> FastLayers | None:
    try:
        fast = fast_layers.install(model.get_base_model(), parts, precision.autocast)
    except Unfit as reason:
        _note(run, "own-layers", "layers compute by their own code", reason)
        return None
    for path, why in fast.refused.items():
        _note(run, "own-layers", f"{path} computes by its own code", Unfit(why))
    total = len(fast.layers) + len(fast.refused)
    run.record["fast_path"]["layers"] = f"{len(fast.layers)} of {total} by hand"
    return fast


def _linears(
    run: Run, model: Any, parts: LabelHead, precision: Precision, *, but: Collection[str]
) -> None:
    """Linear layers that are in no layer by hand, fused with their adapters."""
    base = model.get_base_model()
    inside = sum(
        isinstance(m, LoraLayer) for p in but for m in parts.decoder.get_submodule(p).modules()
    )
    left = sum(isinstance(m, LoraLayer) for m in base.modules()) - inside
    if not left:
        return
    taken = run.record["fast_path"]
    try:
        fused = fast_linears.install(base, parts, precision.autocast, but=but)
    except Unfit as reason:
        taken["linears"] = "own"
        _note(run, "own-linears", "linear layers compute by PEFT's code", reason)
        return
    taken["linears"] = f"{fused} of {left} fused"


def compile_where_it_repays(
    run: Run, fast: FastLayers, precision: Precision, *, asked: str, work: float
) -> None:
    """Compile the elementwise parts of ``fast``: ``asked`` is auto, on or off.

    ``work`` is the run's floating-point operations in all; it depends on the settings and the
    data alone, so that a resumed run goes the same way. The way and its seconds are recorded;
    where nothing can be compiled a notice says why.
    """
    taken = run.record["fast_path"]
    taken["elementwise"] = "tiles"
    if asked == "off" or (asked == "auto" and work < REPAYS):
        return
    try:
        seconds = fast.compile(precision.dtype)
    except Unfit as reason:
        _note(run, "not-compiled", "elementwise parts run eagerly", reason)
        return
    taken |= {"elementwise": "compiled", "compile_seconds": round(seconds, 1)}


def packed_loss(parts: LabelHead) -> Loss:
    """``summed_loss`` of the same samples in one row without padding."""

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        real = batch["attention_mask"].bool()
        targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)[real]
        learned = (targets != IGNORED).nonzero()[:, 0]
        hidden = packed_states(
            parts.decoder, batch["input_ids"], batch["attention_mask"], answering=learned
        )
        return parts.head.summed_cross_entropy(hidden[learned], targets[learned])

    return loss


def _note(run: Run, code: str, what: str, reason: Unfit) -> None:
    remedy = "the result is the same; it takes more time and memory"
    run.note(code, f"{what}: {reason}", remedy)
