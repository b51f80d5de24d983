"""Qwen's mixtures of experts, 1.5 to 3."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_core import PLAIN_PROMPT, Architecture, LoraTargets, TokenizerPolicy, hookimpl

qwen2_moe = Architecture(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    class_names=("Qwen2MoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.shared_expert_gate": "a router: adapting it unbalances the experts",
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        bos="forbidden",
        turn_end="<|im_end|>",
        stop=("<|endoftext|>",),
    ),
    example={
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "shared_expert_intermediate_size": 64,
        "vocab_size": 512,
    },
    source="transformers, models/qwen2_moe/modeling_qwen2_moe.py; Qwen Team 2024 "
    "(arXiv:2407.10671)",
)
qwen3_moe = Architecture(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    class_names=("Qwen3MoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"qwen3_moe": ("gate_proj", "up_proj", "down_proj")},
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=qwen2_moe.tokenizer,
    example={
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/qwen3_moe/modeling_qwen3_moe.py; Qwen Team 2025 "
    "(arXiv:2505.09388)",
)


def has_dense_layers(config: Mapping[str, Any]) -> bool:
    """Some layers have one MLP in place of experts (mlp_only_layers, decoder_sparse_step)."""
    return bool(config.get("mlp_only_layers")) or config.get("decoder_sparse_step", 1) > 1


qwen3_moe_dense_layers = replace(
    qwen3_moe,
    name="qwen3_moe_dense_layers",
    class_names=(),
    where=has_dense_layers,
    targets=replace(qwen3_moe.targets, mlp=qwen2_moe.targets.mlp),
    example={**qwen3_moe.example, "intermediate_size": 128, "mlp_only_layers": [0]},
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Qwen's mixtures of experts, 1.5 to 3."""
    return [qwen2_moe, qwen3_moe, qwen3_moe_dense_layers]
