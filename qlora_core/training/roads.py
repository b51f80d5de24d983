"""Which road a run takes to its losses: the fast one where it is proven, else the model's own."""

from __future__ import annotations

from typing import Any

from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.training.losses import Loss, label_only_loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.runs import Run


def choose_loss(run: Run, model: Any, precision: Precision, *, plain: bool) -> Loss:
    """The label-only head where it equals the model's own forward, measured now.

    Recorded in ``run.record["fast_path"]``; where the model does not allow it, a notice says
    why. ``plain`` asks for the model's own forward.
    """
    if plain:
        run.record["fast_path"] = {"head": "plain"}
        return summed_loss
    try:
        parts = find_head(model, precision.autocast)
    except Unfit as reason:
        run.record["fast_path"] = {"head": "plain"}
        run.note(
            "plain-head",
            f"logits are computed by the model's own forward: {reason}",
            "the result is the same; it takes more time and memory",
        )
        return summed_loss
    run.record["fast_path"] = {"head": "label-only"}
    return label_only_loss(parts)
