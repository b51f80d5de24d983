"""The loss: cross-entropy summed over learned tokens, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.kernels.head_probe import LabelHead

IGNORED = -100
"""The label of a position that is not learned (``torch.nn.functional.cross_entropy``)."""
Batch = Mapping[str, Tensor]
"""``input_ids``, ``attention_mask`` and ``labels``, each (batch, length)."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""``(model, batch)`` -> what ``summed_loss`` returns, by whichever road."""


def learned_tokens(batch: Batch) -> int:
    """How many positions of ``batch`` have a next token to learn."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every learned token, summed, in float32: a scalar with its graph.

    The head runs only where some row of the batch has something to learn, where the model's
    forward takes ``logits_to_keep``; in every case only learned rows are cast to float32, so
    that no (batch, length, vocabulary) tensor is held in float32.
    The model's own loss is not used: its normalisation has changed between releases.
    """
    targets = batch["labels"][:, 1:]
    learned = targets != IGNORED
    length = batch["input_ids"].shape[1]
    columns = learned.any(dim=0).nonzero().flatten()
    extra = _extra_arguments(model, batch["input_ids"], columns)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra
    ).logits
    if logits.shape[1] == length:
        rows, answers = logits[:, :-1][learned], targets[learned]
    else:
        kept = learned[:, columns]
        rows, answers = logits[kept], targets[:, columns][kept]
    return nn.functional.cross_entropy(rows.float(), answers, reduction="sum")


def label_only_loss(parts: LabelHead) -> Loss:
    """``summed_loss`` through the parts of a model: logits of learned tokens alone, in tiles."""

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        hidden = parts.hidden_states(batch["input_ids"], batch["attention_mask"])
        targets = batch["labels"][:, 1:]
        learned = targets != IGNORED
        return parts.head.summed_cross_entropy(hidden[:, :-1][learned], targets[learned])

    return loss


def _extra_arguments(model: nn.Module, ids: Tensor, columns: Tensor) -> dict[str, Any]:
    """What this model's forward takes of: no cache, logits of these positions, all is text.

    Models that also see images must be told in training that no token stands for one; in
    text models token types are something else.
    """
    wrapped = getattr(model, "get_base_model", None)  # under PEFT's wrapper
    base = model if wrapped is None else wrapped()
    wanted: dict[str, Any] = {"use_cache": False, "logits_to_keep": columns}
    if getattr(getattr(base, "config", None), "vision_config", None) is not None:
        wanted["token_type_ids"] = torch.zeros_like(ids)
    inner: Any = getattr(base, "base_model", base)
    known = _named(type(base).forward, type(inner).forward)
    return {name: value for name, value in wanted.items() if name in known}


@lru_cache(maxsize=64)
def _named(forward: Any, inner: Any) -> frozenset[str]:
    """What ``forward`` takes by name; where it hands on the rest, also what ``inner`` takes."""
    own = inspect.signature(forward).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
        return frozenset(own)
    return frozenset(own) | frozenset(inspect.signature(inner).parameters)
