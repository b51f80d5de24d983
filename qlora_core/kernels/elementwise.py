"""What lies between the matrix products of a decoder layer: norms, rotation, gated activation.

Each is one plain function of whole tensors, computed in float32 and rounded once. It runs in one
of two ways: eagerly in tiles of rows that stay in the processor's cache, or compiled. Eagerly
over whole tensors the float32 intermediates would go through memory, at several times the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TILE = 2**17
"""Values of the first argument per tile: half a megabyte in float32."""
Function = Callable[..., Any]

aten = torch.ops.aten


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """(rows, width) over its root mean square, times ``gain`` (1, width) in float32."""
    wide = x.float()
    return (wide * _inverse(wide, epsilon) * gain).to(x.dtype)


def rms_norm_backward(upstream: Tensor, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Gradient of ``x``; the gain is frozen."""
    wide = x.float()
    inverse = _inverse(wide, epsilon)
    normal, error = wide * inverse, upstream.float() * gain
    mean = (error * normal).mean(-1, keepdim=True)
    return ((error - normal * mean) * inverse).to(x.dtype)


def rms_norm_backward_added(
    upstream: Tensor, x: Tensor, residual: Tensor, gain: Tensor, epsilon: float
) -> Tensor:
    """The same plus ``residual``, what comes past the norm; rounded once."""
    wide = x.float()
    inverse = _inverse(wide, epsilon)
    normal, error = wide * inverse, upstream.float() * gain
    mean = (error * normal).mean(-1, keepdim=True)
    return ((error - normal * mean) * inverse + residual.float()).to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (RoFormer, arXiv:2104.09864) on (rows, heads, width).

    ``cos`` and ``sin`` are (rows, 1, rotated width), both halves alike; what lies beyond their
    width stays as it is. With ``-sin`` it is its own gradient.
    """
    half = cos.shape[-1] // 2
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[..., :half].float(), sin[..., :half].float()
    a, b = first.float(), second.float()
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], -1)


def gated_silu(pair: Tensor) -> Tensor:
    """``silu(gate) * up`` of (rows, 2 * width), the gate first."""
    gate, up = pair.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gated_silu_backward(upstream: Tensor, pair: Tensor) -> Tensor:
    """Gradient of the pair: (rows, 2 * width)."""
    gate, up = pair.chunk(2, dim=-1)
    inner = aten.silu_backward(upstream * up, gate)
    return torch.cat([inner, upstream * functional.silu(gate)], dim=-1)


def gated_gelu(pair: Tensor) -> Tensor:
    """``gelu(gate) * up`` with gelu by tanh."""
    gate, up = pair.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def gated_gelu_backward(upstream: Tensor, pair: Tensor) -> Tensor:
    """Gradient of the pair."""
    gate, up = pair.chunk(2, dim=-1)
    inner = aten.gelu_backward(upstream * up, gate, approximate="tanh")
    return torch.cat([inner, upstream * functional.gelu(gate, approximate="tanh")], dim=-1)


def loss_tile(
    products: Tensor, answers: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row of a head's ``products`` (rows, vocabulary), and its gradient.

    Losses are (rows,) in float32, the gradient with respect to ``products`` is in their dtype.
    For the compiler alone, which makes two passes of it: eagerly it would keep many tiles.
    """
    logits, bent = products.float() * scale, None
    if cap is not None:
        bent = torch.tanh(logits / cap)
        logits = cap * bent
    normalizer = logits.logsumexp(1, keepdim=True)
    losses = (normalizer - logits.gather(1, answers[:, None]))[:, 0]
    places = torch.arange(logits.shape[1], device=logits.device)
    errors = (logits - normalizer).exp() - (places == answers[:, None]).float()
    errors = errors if bent is None else errors * (1 - bent.square())
    return losses, (errors * scale).to(products.dtype)


def _inverse(wide: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


FUNCTIONS: tuple[Function, ...] = (
    rms_norm, rms_norm_backward, rms_norm_backward_added, rotated, gated_silu,
    gated_silu_backward, gated_gelu, gated_gelu_backward, loss_tile,
)  # fmt: skip


class Elementwise:
    """The functions of this module by name, each run in one of the two ways.

    Arguments with as many rows as the first are cut with it; those with one are given whole.
    """

    def __init__(self) -> None:
        self.compiled: dict[Function, Function] = {}
        """Those that run compiled, and as what."""

    def compile(self) -> None:
        """From now on compiled, for any number of rows; the first call of each takes seconds."""
        self.compiled = {made: torch.compile(made, dynamic=True) for made in FUNCTIONS}

    def use_tiles(self) -> None:
        """From now on eagerly."""
        self.compiled = {}

    def __call__(self, function: Function, *arguments: Tensor | float) -> Tensor:
        """``function`` of ``arguments``, by tiles or compiled."""
        compiled = self.compiled.get(function)
        made: Tensor = compiled(*arguments) if compiled else by_rows(function, *arguments)
        return made


def by_rows(function: Function, *arguments: Tensor | float) -> Tensor:
    """``function`` over tiles of rows."""
    first = arguments[0]
    assert isinstance(first, Tensor)
    rows = len(first)
    height = max(16, TILE * rows // max(first.numel(), 1))
    if rows <= height:
        return function(*arguments)  # type: ignore[no-any-return]

    def tile(start: int) -> Tensor:
        return function(*(  # type: ignore[no-any-return]
            a[start : start + height] if isinstance(a, Tensor) and len(a) > 1 else a
            for a in arguments
        ))  # fmt: skip

    head = tile(0)
    whole = head.new_empty(rows, *head.shape[1:])
    whole[:height] = head
    for start in range(height, rows, height):
        whole[start : start + height] = tile(start)
    return whole
