"""Micro-batches by a budget of tokens: every sample once, none over the budget, by the seed."""

from __future__ import annotations

import random
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from qlora_core.training.batches import Batches
from qlora_core.training.packs import CPU_TOKENS, pack_budget, packs

lengths = st.lists(st.integers(1, 900), min_size=1, max_size=40)


@given(lengths, st.integers(1, 3000), st.integers(1, 5))
def test_every_sample_is_in_one_pack_and_none_is_over_the_budget(
    lengths: list[int], budget: int, processes: int
) -> None:
    found = packs(lengths, budget, processes)
    assert sorted(place for pack in found for place in pack) == list(range(len(lengths)))
    assert all(len(p) == 1 or sum(lengths[i] for i in p) <= budget for p in found)
    assert len(found) >= min(processes, len(lengths))
    assert all(found)


@given(lengths, st.integers(1, 3000))
def test_packs_are_nearly_full(lengths: list[int], budget: int) -> None:
    """No two packs would fit into one."""
    sums = sorted(sum(lengths[i] for i in pack) for pack in packs(lengths, budget))
    assert len(sums) < 2 or sums[0] + sums[1] > budget


def test_a_budget_is_what_the_memory_plan_counts_on_and_never_below_the_longest() -> None:
    for device in ("cpu", "cuda"):
        assert pack_budget(100, 4, device) == 400
    assert pack_budget(1000, 4, "cpu") == CPU_TOKENS
    assert pack_budget(5000, 4, "cpu") == 5000
    assert pack_budget(5000, 4, "cuda") == 20_000


def batches(**changes: object) -> Batches:
    drawn = random.Random(1)
    samples = [{"input_ids": [0] * drawn.randrange(5, 90), "labels": []} for _ in range(50)]
    settings = {"samples": samples, "collate": lambda cut: {"cut": cut}, "batch_size": 4,
                "accumulation": 4, "seed": 3, "pack_tokens": 200, **changes}  # fmt: skip
    return Batches(**settings)  # type: ignore[arg-type]


def sizes(made: Batches) -> list[list[list[int]]]:
    groups = made.groups(1, 6)
    return [[[len(s["input_ids"]) for s in b["cut"]] for b in group.batches] for group in groups]  # type: ignore[attr-defined]


def test_packing_changes_the_layout_and_not_which_samples_a_step_sees() -> None:
    packed, padded = batches(), batches(pack_tokens=None)
    for one, other in zip(packed.groups(1, 6), padded.groups(1, 6), strict=True):
        assert one.indices == other.indices
    flat = [sorted(chain(*group)) for group in sizes(packed)]
    assert flat == [sorted(chain(*group)) for group in sizes(padded)]
    assert all(sum(pack) <= 200 for group in sizes(packed) for pack in group)


def test_packs_are_a_function_of_the_seed_and_the_step_alone() -> None:
    assert sizes(batches()) == sizes(batches())
    assert sizes(batches()) != sizes(batches(seed=4))
    late = next(iter(batches().groups(5, 5)))
    assert late == list(batches().groups(1, 5))[-1]


def test_processes_share_the_packs_of_a_group() -> None:
    groups = [next(iter(batches(rank=rank, processes=3).groups(1, 1))) for rank in range(3)]
    together = [len(s["input_ids"]) for g in groups for b in g.batches for s in b["cut"]]  # type: ignore[attr-defined]
    assert len(together) == 48
    assert all(group.batches for group in groups)
