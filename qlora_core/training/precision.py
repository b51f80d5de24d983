"""Compute in 16 bits, keep adapters in 32: autocast, and loss scaling for float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

LOWEST_SCALE = 1.0
"""Below this no scale helps: the gradient itself is not finite."""


@dataclass
class Precision:
    """The compute dtype of one run on one device."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        scaled = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of every forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scale(self, loss: Tensor) -> Tensor:
        """``loss``, enlarged so that its float16 gradients do not vanish."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: Optimizer) -> None:
        """Make the gradients those of the loss itself."""
        if self.scaler.is_enabled():
            self.scale(torch.zeros((), device=self.device))  # no sample of this step may be ours
            self.scaler.unscale_(optimizer)

    def update(self) -> None:
        """After a step: raise the scale now and then, lower it after an overflow."""
        if self.scaler.is_enabled():
            self.scaler.update()

    def can_retry(self) -> bool:
        """After an overflow and ``update``: whether a lower scale may help."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= LOWEST_SCALE

    def restore(self, state: dict[str, float]) -> None:
        """Go back to a state of ``scaler.state_dict()``: empty after steps without scaling."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
