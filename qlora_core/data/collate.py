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


def collator(tokenizer: Any, *, multiple_of: int = 1) -> Callable[[Sequence[Any]], Batch]:
    """A function from samples to ``input_ids``, ``attention_mask`` and ``labels``.

    Each is int64 of shape (samples, longest), padded on the right, the length rounded up to
    ``multiple_of``. What is padding is told by length, never by the pad token's id: a pad or
    EOS token inside a sample keeps its attention and its label.
    """
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)

    def collate(samples: Sequence[Any]) -> Batch:
        longest = max(len(sample["input_ids"]) for sample in samples)
        shape = (len(samples), -(-longest // multiple_of) * multiple_of)
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
