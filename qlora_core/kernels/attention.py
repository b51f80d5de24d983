"""Causal attention over samples that lie one after the other, forward and backward by hand.

Sample by sample and tile by tile of query rows: a tile sees only the keys up to its last row,
and its scores stay in the processor's cache. Grouped queries are rows of one product. Scores
and softmax are in float32, as in torch's flash kernel for CPUs, which takes twice as long
forward, and backward up to three times on short samples. Nothing is kept between the two
directions: a tile's shares are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

ROWS = 128
"""Query rows of a tile, the heads of one group counted apart."""
aten = torch.ops.aten
Visible = Callable[[int, int], Tensor]
"""``(start, stop)`` of query rows within a sample -> bool (stop - start, stop): the keys seen."""


@dataclass(frozen=True)
class Segment:
    """One sample of a row: where it lies, and what its tokens see of their past."""

    first: int
    last: int
    visible: Visible | None = None
    """None where every token sees all its past and itself."""

    @property
    def length(self) -> int:
        """In tokens."""
        return self.last - self.first


def plain_segments(bounds: list[int]) -> list[Segment]:
    """Causal samples between ``bounds``: 0, the end of the first sample, ..."""
    return [Segment(first, last) for first, last in pairwise(bounds)]


@dataclass(frozen=True)
class _Tile:
    """Some query rows of a sample, and the keys that they see."""

    queries: slice
    keys: slice
    """From the oldest that any of the rows sees."""
    hidden: Tensor
    """bool (queries, the last so many keys): which of these a row does not see."""


@dataclass(frozen=True)
class Attention:
    """What one layer's attention is: (tokens, heads, width) for queries, fewer heads for keys."""

    scale: float
    cap: float | None = None
    """Scores are ``cap * tanh(scores / cap)`` (arXiv:2408.00118)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: list[Segment]) -> Tensor:
        """The output, shaped like ``q``."""
        out = torch.empty_like(q)
        groups = k.shape[1]
        for segment in segments:
            own = slice(segment.first, segment.last)
            keys, values = (_by_group(part[own]) for part in (k, v))
            wide = keys.float()
            for tile in _tiles(segment, q.shape[1] // groups):
                rows = _grouped(q[own][tile.queries], groups)
                shares, _ = self._shares(rows, wide, tile)
                _ungroup(out[own][tile.queries], torch.bmm(shares, values[:, tile.keys]))
        return out

    def backward(
        self, upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, segments: list[Segment]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``q``, ``k`` and ``v``."""
        found = torch.empty_like(q), k.new_empty(k.shape), v.new_empty(v.shape)
        for segment in segments:
            own = slice(segment.first, segment.last)
            dq, dk, dv = (part[own] for part in found)
            self._backward(segment, upstream[own], q[own], k[own], v[own], dq, dk, dv)
        return found

    def _backward(
        self, segment: Segment, upstream: Tensor, q: Tensor, k: Tensor, v: Tensor,
        dq: Tensor, dk: Tensor, dv: Tensor,
    ) -> None:  # fmt: skip
        groups = k.shape[1]
        keys, values = _by_group(k), _by_group(v)
        wide = keys.float()
        k_sum, v_sum = torch.zeros_like(wide), torch.zeros_like(wide)
        for tile in _tiles(segment, q.shape[1] // groups):
            rows = _grouped(q[tile.queries], groups)
            errors = _grouped(upstream[tile.queries], groups)
            shares, slope = self._shares(rows, wide, tile)
            v_sum[:, tile.keys] += torch.bmm(shares.transpose(1, 2), errors)
            change = torch.bmm(errors, values[:, tile.keys].transpose(1, 2))
            change = aten._softmax_backward_data(change, shares, -1, change.dtype)
            if slope is not None:
                change *= slope
            k_sum[:, tile.keys] += torch.bmm(change.transpose(1, 2), rows)
            _ungroup(dq[tile.queries], torch.bmm(change, keys[:, tile.keys]))
        dq.mul_(self.scale)
        dk.copy_(k_sum.mul_(self.scale).transpose(0, 1))
        dv.copy_(v_sum.transpose(0, 1))

    def _shares(self, rows: Tensor, keys: Tensor, tile: _Tile) -> tuple[Tensor, Tensor | None]:
        """Softmax of the scores in the dtype of ``rows``, and the cap's slope.

        ``rows`` is (groups, heads per group * queries, width), ``keys`` float32
        (groups, tokens, width).
        """
        own = keys[:, tile.keys]
        scores = torch.bmm(rows.float() * self.scale, own.transpose(1, 2))
        slope = None
        if self.cap is not None:
            scores.div_(self.cap).tanh_()
            slope = 1 - scores.square()
            scores.mul_(self.cap)
        newest = scores[..., scores.shape[2] - tile.hidden.shape[1] :]
        by_head = newest.unflatten(1, (-1, len(tile.hidden)))  # type: ignore[no-untyped-call]
        by_head.masked_fill_(tile.hidden, -math.inf)
        return scores.softmax(-1).to(rows.dtype), slope


def _tiles(segment: Segment, repeats: int) -> Iterator[_Tile]:
    """A sample's queries in order, cut so that ``repeats`` heads make some ``ROWS`` rows."""
    height = max(8, ROWS // repeats)
    for start in range(0, segment.length, height):
        stop = min(start + height, segment.length)
        if segment.visible is None:
            hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu_(1)
            yield _Tile(slice(start, stop), slice(0, stop), hidden)
            continue
        seen = segment.visible(start, stop)
        oldest = int(seen.any(0).byte().argmax())
        yield _Tile(slice(start, stop), slice(oldest, stop), ~seen[:, oldest:])


def _by_group(x: Tensor) -> Tensor:
    """(tokens, groups, width) -> (groups, tokens, width)."""
    return x.transpose(0, 1).contiguous()


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(rows, heads, width) -> (groups, heads per group * rows, width)."""
    rows, heads, width = x.shape
    split = x.reshape(rows, groups, heads // groups, width)
    return split.permute(1, 2, 0, 3).reshape(groups, -1, width)


def _ungroup(out: Tensor, made: Tensor) -> None:
    """The way back, into ``out``."""
    rows, heads, width = out.shape
    groups = len(made)
    out.view(rows, groups, heads // groups, width).copy_(
        made.view(groups, heads // groups, rows, width).permute(2, 0, 1, 3)
    )
