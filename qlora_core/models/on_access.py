"""A weight that is 4-bit, and is dequantized whenever code reads it.

For weights that belong to no layer, and for layers whose weight is handed to a kernel, or to
whose weight's dtype an input is cast: as 4-bit modules of bitsandbytes those fail or corrupt.
The dequantized weight lives as long as the code that reads it holds it; in training, until the
backward pass of that operation.
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


def dequantize_on_access(
    module: nn.Module, name: str, packed: nn.Parameter, state: QuantState
) -> None:
    """Let the parameter ``name`` of ``module`` be what ``packed`` stands for."""
    setattr(module, name, packed)
    register_parametrization(module, name, Dequantized(state), unsafe=True)


def state_of(module: nn.Module) -> Any:
    """The bitsandbytes state of such a weight, asked of its list of parametrizations; else None."""
    if not isinstance(module, ParametrizationList):
        return None
    first = next(iter(module))
    return first.state if isinstance(first, Dequantized) else None
