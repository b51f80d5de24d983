"""4-bit NormalFloat, bit by bit as bitsandbytes makes it, in less time on a CPU.

bitsandbytes searches each value among the 15 midpoints of the 16 NF4 levels. Here the upper bits
of a float32 (sign, exponent, three bits of mantissa) look up the only midpoint that is near, and
one comparison decides: two small tables that stay in the processor's cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise
from torch import Tensor

BLOCK = 64
"""Values that share one constant (Dettmers et al. 2023, arXiv:2305.14314)."""
NESTED_BLOCK = 256
CHUNK = 2**17
"""Values quantized at a time: a few hundred kilobytes of work."""
_SHIFT = 20
"""Bits of a float32 below those that are looked up; neighbouring midpoints differ in the rest."""
_LEAST = 1e-38
"""What bitsandbytes divides by where a block is all zero."""


def quantize(weight: Tensor, *, quant_type: str, nested: bool) -> tuple[Tensor, QuantState]:
    """``bitsandbytes.functional.quantize_4bit`` in blocks of 64, with the same bytes.

    ``weight`` is in float32, bfloat16 or float16 and of any shape; ``nested`` quantizes the
    blocks' constants as well. The fast way is taken for NF4 on a CPU, whole blocks of finite
    values, once it has been compared with bitsandbytes in this process.
    """
    if quant_type == "nf4" and _is_suited(weight) and is_exact(weight.dtype):
        packed, constants = _packed(weight.reshape(-1))
        if bool(constants.isfinite().all()):
            return packed, _state(
                constants, weight.shape, weight.dtype, "nf4", get_4bit_type("nf4", device="cpu"),
                nested=nested,
            )  # fmt: skip
    return quantize_4bit(weight, blocksize=BLOCK, compress_statistics=nested, quant_type=quant_type)  # type: ignore[no-any-return]  # bitsandbytes ships no types


def quantize_parts(
    parts: list[Tensor], shape: torch.Size, *, quant_type: str, nested: bool
) -> tuple[Tensor, QuantState]:
    """``quantize`` of ``parts`` laid one after another, emptying the list on the way.

    The same bytes as of the whole of ``shape``, without ever having it: every part is of
    whole blocks.
    """
    dtype, packed, constants = parts[0].dtype, [], []
    parts.reverse()
    while parts:
        part, state = quantize(parts.pop(), quant_type=quant_type, nested=False)
        packed.append(part)
        constants.append(state.absmax)
    whole = torch.cat(constants)
    return torch.cat(packed), _state(whole, shape, dtype, quant_type, state.code, nested=nested)


@cache
def is_exact(dtype: torch.dtype) -> bool:
    """Whether the fast way gives bitsandbytes' bytes in this process, on awkward values."""
    values = _awkward(dtype)
    expected, state = quantize_4bit(
        values, blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
    )
    packed, constants = _packed(values)
    return torch.equal(packed, expected) and torch.equal(constants, state.absmax)


def _is_suited(weight: Tensor) -> bool:
    whole = weight.numel() > 0 and weight.numel() % BLOCK == 0
    return weight.device.type == "cpu" and whole


def _packed(values: Tensor) -> tuple[Tensor, Tensor]:
    """(bytes, 1) with two values each, the first in the high half, and a constant per block."""
    packed = torch.empty(len(values) // 2, 1, dtype=torch.uint8)
    constants = torch.empty(len(values) // BLOCK)
    for start in range(0, len(values), CHUNK):
        blocks = values[start : start + CHUNK].float().view(-1, BLOCK)
        own = constants[start // BLOCK :][: len(blocks)]
        torch.amax(blocks.abs(), dim=1, out=own)
        scaled = blocks * own.clamp(min=_LEAST).reciprocal_()[:, None]
        levels = _levels(scaled).view(-1, 2)
        half = packed[start // 2 :][: len(levels), 0]
        torch.add(levels[:, 1], levels[:, 0], alpha=16, out=half)
    return packed, constants


def _levels(scaled: Tensor) -> Tensor:
    """The number of the nearest NF4 level of each float32 in -1..1, as uint8."""
    below, thresholds = _tables()
    bits = scaled.view(torch.int32).view(-1) >> _SHIFT
    keys = bits.bitwise_and_(len(below) - 1)
    above = scaled.view(-1) > thresholds.index_select(0, keys)
    return below.index_select(0, keys).add_(above.view(torch.uint8))


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """By the upper bits of a float32: how many midpoints lie below all such values (uint8), and
    the one midpoint that lies among them (float32, infinity where there is none).
    """
    first = torch.arange(2 ** (32 - _SHIFT)) << _SHIFT
    edges = torch.stack([first, first + 2**_SHIFT - 1]).to(torch.int32).view(torch.float32)
    midpoints = torch.tensor(_midpoints())
    below = (edges.amin(0)[:, None] > midpoints).sum(1)
    among = (edges.amax(0)[:, None] > midpoints).sum(1) > below
    known = torch.cat([midpoints, torch.tensor([torch.inf])])[below]
    return below.to(torch.uint8), torch.where(among, known, torch.inf)


@cache
def _midpoints() -> tuple[float, ...]:
    levels = get_4bit_type("nf4", device="cpu")
    return tuple(((levels[:-1] + levels[1:]) / 2).tolist())


def _state(
    constants: Tensor, shape: torch.Size, dtype: torch.dtype, quant_type: str, code: Tensor,
    *, nested: bool,
) -> QuantState:  # fmt: skip
    """What bitsandbytes keeps beside the bytes."""
    common: dict[str, Any] = {
        "shape": shape, "dtype": dtype, "blocksize": BLOCK, "code": code,
        "quant_type": quant_type,
    }  # fmt: skip
    if not nested:
        return QuantState(absmax=constants, **common)
    offset = constants.mean()
    small, second = quantize_blockwise(constants - offset, blocksize=NESTED_BLOCK)
    return QuantState(absmax=small, offset=offset, state2=second, **common)


def _awkward(dtype: torch.dtype) -> Tensor:
    """Blocks of random values of all sizes, zeros, ties between two levels and their neighbours."""
    drawn = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-42, 37, 80)[:, None] if dtype != torch.float16 else torch.ones(80, 1)
    random = torch.randn(80, BLOCK, generator=drawn).clamp(-3, 3) * sizes
    ties = torch.tensor([*_midpoints(), 1.0, -1.0])
    near = torch.cat([ties, ties.nextafter(ties + 1), ties.nextafter(ties - 1)])
    near = torch.nn.functional.pad(near, (0, BLOCK - len(near)))
    scales = torch.tensor([1.0, 3.0, 1e-3, 0.7])[:, None]
    return torch.cat([random, torch.zeros(1, BLOCK), near * scales]).to(dtype).flatten()
