"""Which samples make up which step: a function of the seed and the step's number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlora_core.training.packs import packs

Sample = Mapping[str, Any]
"""``input_ids`` and ``labels`` as lists; ``source`` says where it came from."""
Collate = Callable[[list[Sample]], dict[str, Tensor]]


@dataclass(frozen=True)
class Group:
    """The micro-batches of one optimizer step, as far as this process computes them."""

    step: int
    """Counted from 1."""
    indices: tuple[int, ...]
    """The samples of the whole group, of all processes."""
    batches: tuple[dict[str, Tensor], ...]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The groups of a run. Nothing is remembered between steps, so any step can be the first.

    A group is ``batch_size * accumulation * processes`` samples of the epoch's random order,
    the last group of an epoch what is left over. Within a group samples are sorted by length
    before they are cut into micro-batches: less padding, and, the loss being a mean over the
    group's tokens, the same gradient. Micro-batches that are rows without padding are packed up
    to ``pack_tokens`` instead.
    """

    samples: Sequence[Sample]
    collate: Collate
    batch_size: int
    accumulation: int
    seed: int
    rank: int = 0
    processes: int = 1
    pack_tokens: int | None = None

    @property
    def group_size(self) -> int:
        """Samples per optimizer step, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the samples."""
        return -(-len(self.samples) // self.group_size)

    def groups(self, first: int, last: int) -> Iterator[Group]:
        """The groups of the steps ``first`` to ``last``, both included, counted from 1."""
        order: list[int] = []
        known = -1
        for step in range(first, last + 1):
            epoch, position = divmod(step - 1, self.steps_per_epoch)
            if epoch != known:
                order, known = self._order(epoch), epoch
            begin = position * self.group_size
            yield self._group(step, order[begin : begin + self.group_size])

    def padding(self) -> float:
        """The share of the first epoch's positions that is padding, where samples are padded.

        As the lengths have it: rounding lengths up on CPUs comes on top.
        """
        lengths = [len(self.samples[i]["input_ids"]) for i in self._order(0)]
        real, positions = sum(lengths), 0
        for begin in range(0, len(lengths), self.group_size):
            group = sorted(lengths[begin : begin + self.group_size])
            for at in range(0, len(group), self.batch_size):
                cut = group[at : at + self.batch_size]
                positions += len(cut) * cut[-1]
        return 1 - real / positions

    def _group(self, step: int, indices: list[int]) -> Group:
        mine = self._cuts(indices)[self.rank :: self.processes]
        batches = tuple(self.collate([self.samples[i] for i in cut]) for cut in mine)
        return Group(step, tuple(indices), batches)

    def _cuts(self, indices: list[int]) -> list[list[int]]:
        lengths = [len(self.samples[i]["input_ids"]) for i in indices]
        if self.pack_tokens is not None:
            found = packs(lengths, self.pack_tokens, self.processes)
            return [[indices[place] for place in pack] for pack in found]
        places = sorted(range(len(indices)), key=lambda place: lengths[place])
        by_length = [indices[place] for place in places]
        size = self.batch_size
        return [by_length[at : at + size] for at in range(0, len(by_length), size)]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
        order: list[int] = torch.randperm(len(self.samples), generator=generator).tolist()
        return order


def seed_of(seed: int, *place: int | str) -> int:
    """A 32-bit seed for one place of a run: the random numbers there depend on nothing else.

    Seeding every step anew is what makes resume exact without saving any generator's state.
    """
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:4], "big")
