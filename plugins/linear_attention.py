"""Gated delta layers among latent attention: Kimi Linear and Ling."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

kimi_linear = Architecture(
    name="kimi_linear",
    model_types=("kimi_linear",),
    class_names=("KimiLinearForCausalLM",),
    targets=LoraTargets(
        attention=("self_attn.q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "self_attn.o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=(
            "self_attn.q_proj",
            "k_proj",
            "v_proj",
            "f_a_proj",
            "f_b_proj",
            "b_proj",
            "g_a_proj",
            "g_b_proj",
            "self_attn.o_proj",
        ),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    tokenizer=TokenizerPolicy(
        turn_end="<|im_end|>",
    ),
    example={
        "model_type": "kimi_linear",
        "architectures": ["KimiLinearForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/kimi_linear/modeling_kimi_linear.py; Kimi Team 2025 "
    "(arXiv:2510.26692)",
)
bailing_hybrid = Architecture(
    name="bailing_hybrid",
    model_types=("bailing_hybrid",),
    class_names=("BailingHybridForCausalLM",),
    targets=LoraTargets(
        attention=(
            "self_attn.q_proj",
            "kv_a_proj_with_mqa",
            "kv_b_proj",
            "self_attn.o_proj",
            "self_attn.g_proj",
        ),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=(
            "self_attn.q_proj",
            "k_proj",
            "v_proj",
            "f_proj",
            "b_proj",
            "self_attn.o_proj",
            "self_attn.g_proj",
        ),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "bailing_hybrid",
        "architectures": ["BailingHybridForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "moe_intermediate_size": 64,
        "n_group": 2,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "pad_token_id": 0,
        "topk_group": 1,
        "vocab_size": 512,
    },
    source="transformers, models/bailing_hybrid/modeling_bailing_hybrid.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Gated delta layers among latent attention."""
    return [kimi_linear, bailing_hybrid]
