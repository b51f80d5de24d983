"""A few fixed texts, to tell whether two models compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.on_access import Dequantized

TEXTS = (
    "The river rises in the hills to the north, runs past the old mill and the market town, and "
    "reaches the sea after ninety miles. In spring it floods the meadows on its eastern bank.",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\n"
    "Answer: From 9:40 to 13:05 are 3 hours and 25 minutes.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
    "Dear Sir or Madam, thank you for your letter of 3 May. We are sorry to hear that the goods "
    "arrived late, and will refund the cost of delivery within ten days.",
)
"""Prose, a question with its answer, code and a letter."""
LENGTH, ROWS = 64, 4


@dataclass(frozen=True)
class Reading:
    """What a model makes of the probes."""

    loss: float
    """Mean cross-entropy per token, in nats."""
    logits: tuple[torch.Tensor, ...]
    """(tokens, vocabulary) of each probe, float32 on the CPU."""

    def difference(self, other: Reading) -> float:
        """Root mean square difference of the logits, relative to this reading's spread."""
        own, others = torch.cat(self.logits), torch.cat(other.logits)
        return float((own - others).pow(2).mean().sqrt() / own.std())


def probe_ids(
    tokenizer: Any, vocabulary: int, texts: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of the texts; without a tokenizer, ids drawn with a fixed seed."""
    if tokenizer is None:
        drawn = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (ROWS, LENGTH), generator=drawn).tolist()
    rows = [list(tokenizer(text)["input_ids"])[: 4 * LENGTH] for text in texts or TEXTS]
    return [row for row in rows if len(row) > 1]


def compute_in_float32(model: torch.nn.Module) -> None:
    """Let a loaded model compute in float32 with the 4-bit values that it has.

    bfloat16 alone moves the loss of a small model by more than what a comparison looks for.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32
        elif isinstance(module, ExpertStack | Dequantized):
            module.state.dtype = torch.float32


@torch.inference_mode()
def read_probes(model: Any, rows: Sequence[list[int]]) -> Reading:
    """Loss and logits of a model in evaluation mode, one text at a time."""
    device = model.get_input_embeddings().weight.device
    logits, total, count = [], 0.0, 0
    for row in rows:
        ids = torch.tensor([row], device=device)
        output = model(input_ids=ids, use_cache=False).logits[0].float()
        total += float(torch.nn.functional.cross_entropy(output[:-1], ids[0, 1:], reduction="sum"))
        count += len(row) - 1
        logits.append(output.cpu())
    return Reading(total / max(count, 1), tuple(logits))
