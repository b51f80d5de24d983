"""Labels from character spans, and what to leave out of a sample that is too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qlora_core.data.backend import Span, Tokens

IGNORED = -100
"""The label of a token that is not learned (PyTorch's cross entropy skips it)."""


class Kept(NamedTuple):
    """Kept are the first ``head`` tokens and all from ``start`` on."""

    head: int
    start: int
    answers_lost: int


def labels_of(tokens: Tokens, learned: Sequence[Span]) -> list[int]:
    """The ids of tokens that overlap a learned span, -100 elsewhere."""
    labels = [IGNORED] * len(tokens.ids)
    number = 0
    for i, (start, end) in enumerate(tokens.offsets):
        while number < len(learned) and learned[number][1] <= start:
            number += 1
        if number == len(learned):
            break
        if learned[number][0] < max(end, start + 1):
            labels[i] = tokens.ids[i]
    return labels


def shorten(labels: Sequence[int], heads: Sequence[int], max_length: int) -> Kept | None:
    """What to keep so that at most ``max_length`` tokens stay and no answer is cut.

    ``heads`` are numbers of first tokens worth keeping, best first; the last is the fallback.
    Earlier answers go whole. None when the last answer would have to be cut, or would have no
    token before it: its first token would be predicted from nothing.
    """
    kept = None
    for head in heads:
        start = head + len(labels) - max_length
        while start < len(labels) and not _may_begin(labels, start, head):
            start += 1
        if all(label == IGNORED for label in labels[start:]):
            continue
        kept = Kept(head, start, _runs(labels) - _runs(labels[start:]))
        if not kept.answers_lost:
            return kept
    return kept


def _may_begin(labels: Sequence[int], start: int, head: int) -> bool:
    """Whether what is kept may go on at ``start``: with a prompt, or an answer with one before."""
    return labels[start] == IGNORED or (head > 0 and labels[start - 1] == IGNORED)


def windows_of(
    ids: Sequence[int], labels: Sequence[int], size: int
) -> Iterator[tuple[list[int], list[int]]]:
    """``ids`` and ``labels`` in pieces of at most ``size`` tokens, each token learned once.

    A piece begins with the last token of the one before, unlabelled: from it the next token is
    predicted. The first token of all is predicted from nothing, and never labelled.
    """
    for start in range(0, len(ids) - 1, max(size - 1, 1)):
        end = start + size
        yield list(ids[start:end]), [IGNORED, *labels[start + 1 : end]]


def _runs(labels: Sequence[int]) -> int:
    before = (IGNORED, *labels[:-1])
    return sum(x != IGNORED and b == IGNORED for x, b in zip(labels, before, strict=True))
