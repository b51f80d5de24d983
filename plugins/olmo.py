"""OLMo 1 to 3, dense, with experts, and the hybrid with gated delta layers."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

olmo = Architecture(
    name="olmo",
    model_types=("olmo", "olmo2", "olmo3"),
    class_names=("OlmoForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|padding|>",),
    ),
    example={
        "model_type": "olmo",
        "architectures": ["OlmoForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/olmo, olmo2, olmo3; Groeneveld et al. 2024 "
    "(arXiv:2402.00838), OLMo Team 2025 (arXiv:2501.00656)",
)
olmo_moe = Architecture(
    name="olmo_moe",
    model_types=("olmoe", "flex_olmo"),
    class_names=("OlmoeForCausalLM", "FlexOlmoForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts=dict.fromkeys(
            ("olmoe", "flex_olmo"), ("gate_proj", "up_proj", "down_proj")
        ),
    ),
    tokenizer=olmo.tokenizer,
    example={
        **olmo.example,
        "model_type": "olmoe",
        "architectures": ["OlmoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    },
    source="transformers, models/olmoe, flex_olmo; Muennighoff et al. 2024 (arXiv:2409.02060), "
    "Shi et al. 2025 (arXiv:2507.07024)",
)
olmo_hybrid = Architecture(
    name="olmo_hybrid",
    model_types=("olmo_hybrid",),
    class_names=("OlmoHybridForCausalLM",),
    targets=LoraTargets(
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=(
            "linear_attn.q_proj",
            "linear_attn.k_proj",
            "linear_attn.v_proj",
            "a_proj",
            "b_proj",
            "g_proj",
            "linear_attn.o_proj",
        ),
    ),
    tokenizer=olmo.tokenizer,
    example={
        **olmo.example,
        "model_type": "olmo_hybrid",
        "architectures": ["OlmoHybridForCausalLM"],
        "pad_token_id": 0,
    },
    source="transformers, models/olmo_hybrid/modeling_olmo_hybrid.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide OLMo 1 to 3, dense, with experts, and the hybrid with gated delta layers."""
    return [olmo, olmo_moe, olmo_hybrid]
