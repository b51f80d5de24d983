"""Which road a run takes to its losses: the fast one where it is proven, else the model's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qlora_core.kernels import fast_layers, packing
from qlora_core.kernels.head_probe import LabelHead, Unfit, find_head
from qlora_core.training.losses import IGNORED, Batch, Loss, label_only_loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.runs import Run


def choose_loss(run: Run, model: Any, precision: Precision, *, plain: bool) -> Loss:
    """The label-only head over packed samples, as far as each equals the model's own forward.

    Measured now and recorded in ``run.record["fast_path"]``; where the model does not allow a
    part, a notice says why. ``plain`` asks for the model's own forward. Samples are packed on
    CPUs only.
    """
    taken = run.record["fast_path"] = {"head": "plain", "batches": "padded", "layers": "own"}
    if plain:
        return summed_loss
    try:
        parts = find_head(model, precision.autocast)
    except Unfit as reason:
        _note(run, "plain-head", "logits are computed by the model's own forward", reason)
        return summed_loss
    taken["head"] = "label-only"
    if precision.device.type != "cpu":
        return label_only_loss(parts)
    try:
        packing.prepare(model.get_base_model(), parts, precision.autocast)
    except Unfit as reason:
        _note(run, "padded-batches", "samples are padded, not packed", reason)
        return label_only_loss(parts)
    taken["batches"] = "packed"
    try:
        fast = fast_layers.install(model.get_base_model(), parts, precision.autocast)
    except Unfit as reason:
        _note(run, "own-layers", "layers compute by their own code", reason)
        return packed_loss(parts)
    taken["layers"] = f"{len(fast.layers)} by hand"
    for path, why in fast.refused.items():
        _note(run, "own-layers", f"{path} computes by its own code", Unfit(why))
    return packed_loss(parts)


def packed_loss(parts: LabelHead) -> Loss:
    """``summed_loss`` of the same samples in one row without padding."""

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        real = batch["attention_mask"].bool()
        targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)[real]
        learned = targets != IGNORED
        hidden = packing.packed_states(parts.decoder, batch["input_ids"], batch["attention_mask"])
        return parts.head.summed_cross_entropy(hidden[learned], targets[learned])

    return loss


def _note(run: Run, code: str, what: str, reason: Unfit) -> None:
    remedy = "the result is the same; it takes more time and memory"
    run.note(code, f"{what}: {reason}", remedy)
