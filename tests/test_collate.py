"""Padding is told by length: what stands in the data keeps its attention and its label."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_core.data.collate import collator

PAD = 7


def tokenizer(pad: int | None = PAD, eos: int | None = 2) -> Any:
    """All that a collator asks of a tokenizer."""
    return SimpleNamespace(pad_token_id=pad, eos_token_id=eos)


def sample(*ids: int) -> dict[str, Any]:
    return {"input_ids": list(ids), "labels": list(ids), "source": ("train.jsonl", 1)}


def test_a_pad_token_inside_the_data_keeps_its_label() -> None:
    batch = collator(tokenizer())([sample(1, PAD, 3, PAD), sample(PAD, PAD)])
    assert batch["labels"].tolist() == [[1, PAD, 3, PAD], [PAD, PAD, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["input_ids"].tolist() == [[1, PAD, 3, PAD], [PAD, PAD, PAD, PAD]]


def test_the_eos_token_is_learned_though_it_pads_too() -> None:
    batch = collator(tokenizer(pad=2, eos=2))([sample(1, 2), sample(1, 3, 4, 2)])
    assert batch["labels"].tolist() == [[1, 2, -100, -100], [1, 3, 4, 2]]


@pytest.mark.parametrize(("pad", "eos", "used"), [(5, 2, 5), (None, 2, 2), (None, None, 0)])
def test_any_tokenizer_can_pad(pad: int | None, eos: int | None, used: int) -> None:
    batch = collator(tokenizer(pad, eos))([sample(1), sample(1, 1)])
    assert batch["input_ids"][0, 1] == used


def test_models_get_exactly_their_three_arguments() -> None:
    batch = collator(tokenizer())([sample(1, 2)])
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), multiple=st.sampled_from([1, 8])
)
def test_every_token_is_there_and_nothing_else_counts(lengths: list[int], multiple: int) -> None:
    samples = [sample(*[PAD] * length) for length in lengths]
    batch = collator(tokenizer(), multiple_of=multiple)(samples)
    width = batch["input_ids"].shape[1]
    assert width % multiple == 0
    assert max(lengths) <= width < max(lengths) + multiple
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"] != -100).sum(1).tolist() == lengths


@pytest.mark.parametrize(
    ("length", "most", "expected"), [(33, None, 64), (33, 40, 40), (32, 40, 32), (50, 40, 50)]
)
def test_rounding_up_never_asks_for_more_positions_than_there_are(
    length: int, most: int | None, expected: int
) -> None:
    batch = collator(tokenizer(), multiple_of=32, most=most)([sample(*range(length))])
    assert batch["input_ids"].shape == (1, expected)
    assert batch["attention_mask"].sum() == length
