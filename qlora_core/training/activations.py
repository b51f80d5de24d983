"""How much of its forward pass a layer keeps for the backward pass, by the memory that there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.layer import Keep
from qlora_core.models.devices import free_memory_of
from qlora_core.models.memory import ACTIVATIONS
from qlora_core.training.schema import TrainSettings

if TYPE_CHECKING:
    from qlora_core.training.setup import Inputs

FITS = 0.9
"""The share of the free memory that a plan may use."""
_WORDS = {Keep.ALL: "keep everything", Keep.MOST: "compute gate and up again",
          Keep.INPUT: "are computed again"}  # fmt: skip


def memory_limit(settings: TrainSettings, device: torch.device) -> float:
    """Bytes that the process may take: as given, else ``FITS`` of what is free now."""
    if settings.memory_budget is not None:
        return settings.memory_budget * 1e9
    return FITS * free_memory_of(device)


def settle(fast: FastLayers, inputs: Inputs) -> dict[str, Any]:
    """Tell every layer what to keep; the numbers for the record.

    ``gradient_checkpointing`` on or off holds for all layers. With ``auto`` the memory that is
    left beside all other terms of the plan is given to the last layers first: what they keep
    is needed, and gone, the soonest. Whatever is kept, the gradients are the same.
    """
    tokens = inputs.pack_tokens
    room = math.inf
    if inputs.gradient_checkpointing:
        room = 0.0
        if inputs.settings.gradient_checkpointing == "auto":
            plan = inputs.plan
            other = plan.total - plan.terms[ACTIVATIONS]
            room = memory_limit(inputs.settings, inputs.device) - other
    counts = fast.keep_within(room, tokens)
    return {
        "layers_that": {_WORDS[keep]: count for keep, count in counts.items() if count},
        "kept_bytes": fast.kept_bytes(tokens),
        "tokens_at_once": tokens,
    }
