"""How much of its forward pass a layer keeps for the backward pass, by the memory that there is."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.layer_state import Keep
from qlora_core.models.memory_plan import ACTIVATIONS

if TYPE_CHECKING:
    from qlora_core.training.setup import Inputs

_WORDS = {Keep.ALL: "keep everything", Keep.MOST: "compute gate and up again",
          Keep.INPUT: "are computed again"}  # fmt: skip


def settle(fast: FastLayers, inputs: Inputs) -> tuple[Inputs, dict[str, Any]]:
    """Tell every layer what to keep; the plan for that, and the numbers for the record.

    ``gradient_checkpointing`` on or off holds for all layers. With ``auto`` the memory that is
    left beside all other terms of the plan is given to the last layers first: what they keep
    is needed, and gone, the soonest. Whatever is kept, the gradients are the same.
    """
    plan, tokens = inputs.plan, inputs.plan.tokens
    room = math.inf
    fast.keep_within(0.0, tokens)
    others = plan.terms[ACTIVATIONS] - fast.kept_bytes(tokens)
    if inputs.gradient_checkpointing:
        room = 0.0
        if inputs.settings.gradient_checkpointing == "auto":
            room = plan.room(inputs.planning.limit) - others
    counts = fast.keep_within(room, tokens)
    if inputs.gradient_checkpointing:
        plan = plan.keeping(others + fast.kept_bytes(tokens))
    return dataclasses.replace(inputs, plan=plan), {
        "layers_that": {_WORDS[keep]: count for keep, count in counts.items() if count},
        "kept_bytes": fast.kept_bytes(tokens),
        "tokens_at_once": tokens,
    }
