"""Evaluation: the mean loss over learned tokens, one micro-batch of logits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qlora_core.training.batches import Collate, Sample
from qlora_core.training.losses import Loss, learned_tokens, summed_loss
from qlora_core.training.packs import packs
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes


@dataclass(frozen=True)
class Evaluation:
    """The loss over all learned tokens of the evaluation rows."""

    loss: float
    tokens: int
    """Learned ones."""


def evaluate(
    model: nn.Module,
    samples: Sequence[Sample],
    collate: Collate,
    *,
    batch_size: int,
    precision: Precision,
    processes: Processes,
    loss: Loss = summed_loss,
    pack_tokens: int | None = None,
) -> Evaluation:
    """Weight every learned token alike; the model comes back in the mode it was in.

    Micro-batches are ``batch_size`` samples of like length, or packs of ``pack_tokens``.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    cuts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    if pack_tokens is not None:
        cuts = packs(lengths, pack_tokens)
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision.autocast():
            for cut in cuts[processes.rank :: processes.count]:
                batch = collate([samples[i] for i in cut])
                batch = {name: value.to(precision.device) for name, value in batch.items()}
                if learned := learned_tokens(batch):
                    total += float(loss(model, batch))
                    count += learned
    finally:
        model.train(was_training)
    total, tokens = processes.sum([total, float(count)], precision.device)
    return Evaluation(total / max(tokens, 1.0), int(tokens))
