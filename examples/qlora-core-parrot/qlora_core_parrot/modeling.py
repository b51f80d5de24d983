"""A small decoder with a fused query-key-value projection: tokens in, logits out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput


class ParrotConfig(PreTrainedConfig):
    model_type = "parrot"

    def __init__(
        self,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        vocab_size: int = 256,
        max_position_embeddings: int = 512,
        **more: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        more.setdefault("tie_word_embeddings", False)
        super().__init__(**more)


class Perch(nn.Module):
    """Causal attention; x: (batch, length, hidden)."""

    def __init__(self, config: ParrotConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))


class Beak(nn.Module):
    def __init__(self, config: ParrotConfig) -> None:
        super().__init__()
        self.open = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.close = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.close(gelu(self.open(x)))


class ParrotLayer(GradientCheckpointingLayer):
    def __init__(self, config: ParrotConfig) -> None:
        super().__init__()
        self.before_perch = nn.LayerNorm(config.hidden_size)
        self.perch = Perch(config)
        self.before_beak = nn.LayerNorm(config.hidden_size)
        self.beak = Beak(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.perch(self.before_perch(x), mask)
        return x + self.beak(self.before_beak(x))


class ParrotPreTrainedModel(PreTrainedModel):
    config_class = ParrotConfig
    base_model_prefix = "parrot"
    supports_gradient_checkpointing = True
    _no_split_modules = ("ParrotLayer",)
    _supports_sdpa = True


class ParrotModel(ParrotPreTrainedModel):
    def __init__(self, config: ParrotConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(ParrotLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        length = input_ids.shape[1]
        place = torch.arange(length, device=input_ids.device)
        mask = (place[:, None] >= place[None, :])[None, None]  # (1, 1, length, length)
        if attention_mask is not None:
            mask = mask & (attention_mask[:, None, None, :].bool() | (place[:, None] == place))
        x = self.embeddings(input_ids) + self.positions(place)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class ParrotForCausalLM(ParrotPreTrainedModel, GenerationMixin):
    def __init__(self, config: ParrotConfig) -> None:
        super().__init__(config)
        self.parrot = ParrotModel(config)
        self.squawk = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.squawk

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """All tokens each time: Parrot keeps no cache of keys and values."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        return CausalLMOutput(logits=self.squawk(self.parrot(input_ids, attention_mask)))
