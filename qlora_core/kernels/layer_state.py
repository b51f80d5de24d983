"""What a decoder layer by hand is given, and what it keeps from one direction to the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor

from qlora_core.kernels.attention import Segment
from qlora_core.kernels.linears import Kept


class Keep(IntEnum):
    """What a layer keeps of its forward pass, in growing order of memory."""

    INPUT = 0
    """Its input: everything is computed again but the last product."""
    MOST = 1
    """All but the widest part, gate and up."""
    ALL = 2


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm with a frozen gain (1, width) in float32."""

    gain: Tensor
    epsilon: float


@dataclass(frozen=True)
class Row:
    """The samples of one packed row."""

    segments: list[Segment]
    cos: Tensor
    """(tokens, 1, rotated width)"""
    sin: Tensor
    wanted: Tensor | None = None
    """The only tokens whose output is wanted of this layer, by place; None: all."""


@dataclass
class Saved:
    """What one forward pass leaves for its backward pass."""

    kept: dict[str, Kept] = field(default_factory=dict)
    qkv: Tensor | None = None
    attended: Tensor | None = None
    projected: Tensor | None = None
    """Output of o before its norm, where it has one."""
    middle: Tensor | None = None
    """After attention: (wanted tokens, hidden)."""
    pair: Tensor | None = None
    """Gate and up."""
    mapped: Tensor | None = None
    """Output of down before its norm, where it has one."""

    def reduce(self, keep: Keep) -> None:
        """Forget what is to be computed again."""
        if keep < Keep.ALL:
            self.pair = None
        if keep < Keep.MOST:
            self.qkv = self.attended = self.projected = self.middle = None
