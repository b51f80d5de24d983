"""Which samples share a micro-batch, where micro-batches are rows without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

CPU_TOKENS = 2048
"""More in one row gains nothing on a CPU: dequantizing the weights costs 10 % of the matrix
products at 256 tokens, 3 % at 1024."""


def pack_budget(longest: int, batch_size: int, device: str) -> int:
    """Tokens of one micro-batch: what ``batch_size`` samples may have, on CPUs ``CPU_TOKENS``.

    Never less than the longest sample. ``device`` is a type of torch's.
    """
    most = longest * batch_size
    return max(longest, min(most, CPU_TOKENS)) if device == "cpu" else most


def packs(lengths: Sequence[int], budget: int, processes: int = 1) -> list[list[int]]:
    """Positions in ``lengths``, each in one pack of at most ``budget`` tokens.

    Best fit decreasing: the longest first, each into the fullest pack that has room; a longer one
    than ``budget`` stands alone. With several processes the budget falls until every one of them
    has a pack, as far as there are samples.
    """
    share = math.ceil(sum(lengths) / processes)
    made = _best_fit(lengths, min(budget, share) if processes > 1 else budget)
    while len(made) < min(processes, len(lengths)):
        made = sorted(made, key=len)
        most = made.pop()
        made += [most[0::2], most[1::2]]
    return made


def _best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    made: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [i for i, free in enumerate(room) if free >= lengths[position]]
        if fits:
            chosen = min(fits, key=lambda i: room[i])
        else:
            chosen = len(made)
            made.append([])
            room.append(budget)
        made[chosen].append(position)
        room[chosen] -= lengths[position]
    return made
