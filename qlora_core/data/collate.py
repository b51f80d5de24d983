"""Samples to batches, padded by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import torch

from qlora_core.data.encode import IGNORED


class Sample(TypedDict):
    """Token ids with the labels of the learned ones (-100 elsewhere), of equal length."""

    input_ids: list[int]
    labels: list[int]
    source: NotRequired[tuple[str, int]]
    """File and line, for messages."""


Batch = dict[str, torch.Tensor]
CPU_MULTIPLE = 32


def collator(
    tokenizer: Any, *, multiple_of: int = 1, most: int | None = None
) -> Callable[[Sequence[Any]], Batch]:
    """A function from samples to ``input_ids``, ``attention_mask`` and ``labels``.

    Each is int64 of shape (samples, longest), padded on the right, the length rounded up to
    ``multiple_of`` but for that not past ``most``. What is padding is told by length, never by
    the pad token's id: a pad or EOS token inside a sample keeps its attention and its label.
    """
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    def collate(samples: Sequence[Any]) -> Batch:
        longest = max(len(sample["input_ids"]) for sample in samples)
        shape = (len(samples), padded(longest, multiple_of, most))
        batch = {
            "input_ids": torch.full(shape, pad),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            batch["input_ids"][row, :length] = torch.tensor(sample["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.tensor(sample["labels"])
        return batch

    return collate


def padded(length: int, multiple_of: int, most: int | None = None) -> int:
    """``length`` rounded up to ``multiple_of``, but for that not past ``most``."""
    rounded = -(-length // multiple_of) * multiple_of
    return rounded if most is None else max(length, min(rounded, most))


def padding_of(device: torch.device) -> int:
    """Of what the length of a micro-batch is a multiple.

    On a CPU every new shape leaves memory behind, in caches of compiled kernels and in an
    allocator that fits blocks of many sizes: few lengths keep the process small, and fast.
    """
    return CPU_MULTIPLE if device.type == "cpu" else 1
