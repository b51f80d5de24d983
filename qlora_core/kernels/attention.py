"""Causal attention over samples that lie one after the other, forward and backward by hand.

Forward goes sample by sample through torch's flash kernel for CPUs; backward starts from the
logarithm of each row's normalizer, with batched products over tiles of rows: torch's own
backward takes several times as long on short samples. Grouped queries are rows of one product.
Samples with a mask of their own (a sliding window), and scores that are capped, go through
tiles in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TILE = 256
"""Query rows at a time in samples of more than twice as many."""
aten = torch.ops.aten
Visible = Callable[[int, int], Tensor]
"""``(start, stop)`` of query rows within a sample -> bool (stop - start, stop): the keys seen."""


@dataclass(frozen=True)
class Segment:
    """One sample of a row: where it lies, and what its tokens see beside their past."""

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
class Attention:
    """What one layer's attention is: (tokens, heads, width) for queries, fewer heads for keys."""

    scale: float
    cap: float | None = None
    """Scores are ``cap * tanh(scores / cap)`` (Gemma 2, arXiv:2408.00118)."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, segments: list[Segment]
    ) -> tuple[Tensor, Tensor]:
        """The output, shaped like ``q``, and the log of the normalizers: (heads, tokens)."""
        out = torch.empty_like(q)
        normalizers = q.new_empty(q.shape[1], len(q), dtype=torch.float32)
        for segment in segments:
            own = slice(segment.first, segment.last)
            parts = q[own], k[own], v[own], out[own], normalizers[:, own]
            if segment.visible is None and self.cap is None:
                self._flash(*parts)
            else:
                self._tiled(segment, *parts)
        return out, normalizers

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normalizers: Tensor) -> None:
        repeats = q.shape[1] // k.shape[1]
        states = [
            part.transpose(0, 1)[None] if part is q or repeats == 1
            else part.transpose(0, 1)[None].repeat_interleave(repeats, 1)
            for part in (q, k, v)
        ]  # fmt: skip
        made, logs = aten._scaled_dot_product_flash_attention_for_cpu(
            *states, 0.0, True, scale=self.scale
        )
        out.copy_(made[0].transpose(0, 1))
        normalizers.copy_(logs[0])

    def _tiled(
        self, segment: Segment, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normalizers: Tensor
    ) -> None:
        groups = k.shape[1]
        for queries, keys, seen in _tiles(segment):
            rows = _grouped(q[queries], groups)
            scores, _ = self._scores(rows, k[keys].transpose(0, 1))
            scores.masked_fill_(~seen.repeat(q.shape[1] // groups, 1), -math.inf)
            logs = scores.logsumexp(-1)
            shares = (scores - logs[..., None]).exp_().to(q.dtype)
            _ungroup(out[queries], torch.bmm(shares, v[keys].transpose(0, 1)), groups)
            normalizers[:, queries] = logs.view(q.shape[1], -1)

    def backward(
        self, upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
        normalizers: Tensor, segments: list[Segment],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of ``q``, ``k`` and ``v``."""
        dq = torch.empty_like(q)
        dk, dv = k.new_zeros(k.shape), v.new_zeros(v.shape)
        delta = (upstream.float() * out.float()).sum(-1)  # (tokens, heads)
        for segment in segments:
            own = slice(segment.first, segment.last)
            self._backward(
                segment, upstream[own], q[own], k[own], v[own], normalizers[:, own], delta[own],
                (dq[own], dk[own], dv[own]),
            )  # fmt: skip
        return dq, dk, dv

    def _backward(
        self, segment: Segment, upstream: Tensor, q: Tensor, k: Tensor, v: Tensor,
        normalizers: Tensor, delta: Tensor, found: tuple[Tensor, Tensor, Tensor],
    ) -> None:  # fmt: skip
        groups, repeats = k.shape[1], q.shape[1] // k.shape[1]
        dq, dk, dv = found
        keys_first, values_first = (t.transpose(0, 1).contiguous() for t in (k, v))
        tiles = list(_tiles(segment))
        wide = torch.float32 if len(tiles) > 1 else k.dtype  # sums of several are rounded once
        k_sum, v_sum = (torch.zeros(t.shape, dtype=wide) for t in (keys_first, values_first))
        for queries, keys, seen in tiles:
            rows, errors = _grouped(q[queries], groups), _grouped(upstream[queries], groups)
            own_keys, own_values = keys_first[:, keys], values_first[:, keys]
            logs = normalizers[:, queries].reshape(groups, -1, 1)
            means = delta[queries].t().reshape(groups, -1, 1)
            scores, slope = self._scores(rows, own_keys)
            shares = scores.sub_(logs).exp_()
            shares.masked_fill_(~seen.repeat(repeats, 1), 0.0)
            v_sum[:, keys] += torch.bmm(shares.to(q.dtype).transpose(1, 2), errors)
            change = torch.bmm(errors, own_values.transpose(1, 2)).float().sub_(means)
            shares.mul_(change).mul_(self.scale)
            if slope is not None:
                shares.mul_(slope)
            steps = shares.to(q.dtype)
            k_sum[:, keys] += torch.bmm(steps.transpose(1, 2), rows)
            _ungroup(dq[queries], torch.bmm(steps, own_keys), groups)
        dk.copy_(k_sum.transpose(0, 1))
        dv.copy_(v_sum.transpose(0, 1))

    def _scores(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scaled and capped scores in float32, and the cap's slope: (groups, rows, keys)."""
        scores = torch.bmm(rows, keys.transpose(1, 2)).float().mul_(self.scale)
        if self.cap is None:
            return scores, None
        bent = scores.div_(self.cap).tanh_()
        slope = 1 - bent.square()
        return bent.mul_(self.cap), slope


def _tiles(segment: Segment) -> Iterator[tuple[slice, slice, Tensor]]:
    """Query rows of a sample, the keys from the oldest that any of them sees, and which they see.

    The last is bool (queries, keys), the same for all heads.
    """
    height = segment.length if segment.length <= 2 * TILE else TILE
    for start in range(0, segment.length, height):
        stop = min(start + height, segment.length)
        seen = (segment.visible or _past)(start, stop)
        oldest = 0 if segment.visible is None else int(seen.any(0).byte().argmax())
        yield slice(start, stop), slice(oldest, stop), seen[:, oldest:]


def _past(start: int, stop: int) -> Tensor:
    return torch.arange(stop)[None] <= torch.arange(start, stop)[:, None]


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(rows, heads, width) -> (groups, heads per group * rows, width)."""
    rows, heads, width = x.shape
    split = x.reshape(rows, groups, heads // groups, width)
    return split.permute(1, 2, 0, 3).reshape(groups, -1, width)


def _ungroup(out: Tensor, made: Tensor, groups: int) -> None:
    """The way back, into ``out``."""
    rows, heads, width = out.shape
    out.view(rows, groups, heads // groups, width).copy_(
        made.view(groups, heads // groups, rows, width).permute(2, 0, 1, 3)
    )
