"""A linear layer whose weight is 4-bit, and is dequantized whenever code reads it.

For layers whose weight is handed to a kernel, or to whose weight's dtype an input is cast: as
4-bit modules of bitsandbytes they fail or corrupt. The dequantized weight lives as long as the
code that reads it holds it; in training, until the backward pass of that layer.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization


class Dequantized(nn.Module):
    """Packed 4-bit values (n, 1) -> the weight that they stand for."""

    def __init__(self, state: QuantState) -> None:
        super().__init__()
        self.state = state

    @torch.no_grad()
    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """The weight in the state's shape and dtype."""
        weight: torch.Tensor = dequantize_4bit(packed, self.state)
        return weight


def dequantize_on_access(layer: nn.Module, packed: nn.Parameter, state: QuantState) -> None:
    """Let ``layer.weight`` be what ``packed`` stands for."""
    layer.weight = packed
    register_parametrization(layer, "weight", Dequantized(state), unsafe=True)


def state_of(module: nn.Module) -> Any:
    """The bitsandbytes state of such a weight, asked of its list of parametrizations; else None."""
    is_ours = isinstance(module, ParametrizationList) and isinstance(module[0], Dequantized)
    return module[0].state if is_ours else None
