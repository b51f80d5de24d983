"""What the tokens of a packed row see of each other, asked tile by tile.

From the positions of a packed row transformers makes a mask of (tokens, tokens), of which
attention sample by sample needs the samples' own parts alone: memory that grows with the square
of the row. Here the rule behind that mask is kept in its place, and asked where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(batch, head, query, key)``, tensors of places that broadcast -> bool: whether it is seen."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The packed row that a decoder computes at this moment."""

    answering: Tensor | None
    """Places of the only tokens whose last hidden state is asked for; None: all."""


_computed: ContextVar[PackedRow | None] = ContextVar("the packed row", default=None)


@dataclass(frozen=True, eq=False)
class RowMask:
    """Stands where a model expects a mask of (1, 1, tokens, tokens)."""

    rule: Rule
    device: torch.device
    _known: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Answers of ``sees_all_before``: every layer asks, and asking a GPU stops it."""

    def part(self, queries: slice, keys: slice) -> Tensor:
        """(queries, keys) by places in the row, as bool: True where the key is seen."""
        rows = torch.arange(queries.start, queries.stop, device=self.device)[None, None, :, None]
        columns = torch.arange(keys.start, keys.stop, device=self.device)[None, None, None]
        zero = rows.new_zeros(1, 1, 1, 1)
        seen = self.rule(zero, zero, rows, columns)
        return seen.expand(1, 1, rows.numel(), columns.numel())[0, 0]

    def sees_all_before(self, query: int, first: int) -> bool:
        """Whether a token sees itself and all from ``first`` on: no window ends before it."""
        asked = query, first
        if asked not in self._known:
            seen = self.part(slice(query, query + 1), slice(first, query + 1))
            self._known[asked] = bool(seen.all())
        return self._known[asked]


@contextmanager
def computing(answering: Tensor | None = None) -> Iterator[None]:
    """While a decoder computes one packed row: its masks are ``RowMask``."""
    before = _computed.set(PackedRow(answering))
    try:
        yield
    finally:
        _computed.reset(before)


def answering() -> Tensor | None:
    """Places of the tokens whose last hidden state is asked for, where not all are."""
    row = _computed.get()
    return None if row is None else row.answering


def row_mask(**given: Any) -> RowMask | Tensor | None:
    """A mask function for transformers' ``AttentionMaskInterface``: its own for SDPA elsewhere.

    So it is for several rows, for padded ones, and for rules that are not by places.
    """
    lazy = _computed.get() and given["batch_size"] == 1 and given.get("attention_mask") is None
    if not lazy or given.get("use_vmap") or "mask_function" not in given:
        whole: Tensor | None = sdpa_mask(**given)
        return whole
    return RowMask(given["mask_function"], _device_of(given))


def _device_of(given: dict[str, Any]) -> torch.device:
    """Where the mask is asked for: newer releases say it, older ones give places in a tensor."""
    places = given.get("cache_position")
    return torch.device(given.get("device", "cpu" if places is None else places.device))
