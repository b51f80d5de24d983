"""4-bit weights as one dense matrix, in a buffer that is used again and again.

bitsandbytes allocates a matrix whenever it dequantizes; on a CPU touching that fresh memory takes
about as long as the arithmetic. Its C functions write where they are told to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from bitsandbytes.cextension import lib
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Workspace:
    """One buffer that every dense matrix is written to: it holds the latest one only."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(rows, columns), uninitialised; what was taken before is overwritten."""
        size = rows * columns
        fits = self._buffer.numel() >= size
        if not fits or self._buffer.dtype != dtype or self._buffer.device != device:
            self._buffer = torch.empty(size, dtype=dtype, device=device)
        return self._buffer[:size].view(rows, columns)


def dense(bases: Sequence[nn.Module], dtype: torch.dtype, space: Workspace) -> Tensor:
    """Weights of linear layers with one input, stacked: (sum of outputs, inputs) in ``dtype``.

    Valid until ``space`` is asked again. A single layer in 16 bits gives its own weight.
    """
    first = bases[0]
    if len(bases) == 1 and not isinstance(first, Linear4bit) and first.weight.dtype == dtype:
        own: Tensor = first.weight.detach()  # type: ignore[operator]
        return own
    outputs = [shape_of(base)[0] for base in bases]
    stacked = space.take(sum(outputs), shape_of(first)[1], dtype, first.weight.device)  # type: ignore[arg-type]
    for base, rows in zip(bases, torch.split(stacked, outputs), strict=True):
        _write(base, rows)
    return stacked


def shape_of(base: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, 4-bit or not."""
    state = getattr(base.weight, "quant_state", None)
    outputs, inputs = base.weight.shape if state is None else state.shape
    return int(outputs), int(inputs)


def _write(base: Any, rows: Tensor) -> None:
    if not isinstance(base, Linear4bit):
        rows.copy_(base.weight.detach())
        return
    state: Any = base.weight.quant_state
    packed = base.weight.data
    write = None
    if packed.device.type == "cpu" and packed.dtype == torch.uint8 and state.dtype == rows.dtype:
        write = _fast(state.quant_type, rows.dtype)
    if write is None or state.shape[-1] % 2 or state.blocksize != 64:
        rows.copy_(dequantize_4bit(packed, state))
        return
    constants = state.absmax
    if state.nested:
        constants = dequantize_blockwise(constants, state.state2) + state.offset
    write(packed, constants.float(), rows)


Write = Callable[[Tensor, Tensor, Tensor], None]


@cache
def _fast(quant_type: str, dtype: torch.dtype) -> Write | None:
    """The C function of bitsandbytes, once it has given what ``dequantize_4bit`` gives."""
    function = getattr(lib, f"cdequantize_blockwise_cpu_{quant_type}_{_NAMES.get(dtype)}", None)
    if function is None:
        return None

    def write(packed: Tensor, constants: Tensor, rows: Tensor) -> None:
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (packed, constants, rows))
        function(*pointers, *(ctypes.c_longlong(n) for n in (64, rows.shape[0], rows.shape[1])))

    weight = torch.randn(6, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type=quant_type)
    ours = torch.empty_like(weight)
    write(packed, state.absmax, ours)
    return write if torch.equal(ours, dequantize_4bit(packed, state)) else None
