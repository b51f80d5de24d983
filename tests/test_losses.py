"""The loss asks a model for what training needs, and for nothing else."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_core.models.skeleton import build_skeleton
from qlora_core.testing.cases import require_class
from qlora_core.training.losses import Batch, summed_loss

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 256,
}  # fmt: skip


class Hiding(LlamaForCausalLM):
    """Hands on to the model inside what it does not name, as some do with ``use_cache``."""

    caches: list[object]

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **others: object) -> object:
        found = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **others)
        self.caches.append(found.past_key_values)
        return found


def batch() -> Batch:
    ids = tiny.tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_no_cache_is_made_in_training_where_the_forward_hides_the_choice() -> None:
    model = Hiding(LlamaConfig(**SMALL))
    model.caches = []
    summed_loss(model, batch())
    model(input_ids=tiny.tokens())
    in_training, unasked = model.caches
    assert in_training is None
    assert unasked is not None


def test_a_hybrid_of_recurrent_layers_alone_learns() -> None:
    family = tiny.family("granite_hybrid")
    require_class(family, "granitemoehybrid")
    kinds = {"layer_types": ["linear_attention"] * 2}
    model = build_skeleton({**family.example, **kinds}, device="cpu").train()
    layers = model.get_submodule("model.layers").children()
    recurrent = [layer.mamba for layer in layers]
    if None in recurrent:
        pytest.skip("this transformers names the kinds of layers otherwise")
    loss = summed_loss(model, batch())
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(mamba.in_proj.weight.grad.any() for mamba in recurrent)
