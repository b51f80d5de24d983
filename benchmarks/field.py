"""Where contestants meet, and the step that they all take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.measuring import Batch
from qlora_core.models.adapters import enable_checkpointing
from qlora_core.training.precision import Precision

BY_HAND = ("cpu",)
"""Where a run computes layers by hand and fuses linear layers (``training/roads.py``)."""


@dataclass
class Field:
    """Where contestants meet: an NF4 model on disk, a device, and who could not come."""

    folder: Path
    device: torch.device
    absent: dict[str, str] = field(default_factory=dict)
    """Contestant -> why it does not run here."""

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model on disk."""
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def precision(self) -> Precision:
        """bfloat16, by autocast."""
        return Precision(self.device, torch.bfloat16)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def recompute(base: Any, on: bool) -> None:
    """Whether layers of transformers' code are computed again in the backward pass."""
    if on:
        enable_checkpointing(base)
    else:
        base.gradient_checkpointing_disable()


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch], Tensor],
    batches: list[Batch],
    *,
    checkpointing: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """A step per batch; ``ready`` comes first. Layers by hand recompute by themselves."""
    recompute(model.get_base_model(), checkpointing)
    ready()
    for batch in batches:
        torch.autograd.backward(loss(batch))
        optimizer.step()
        optimizer.zero_grad()
