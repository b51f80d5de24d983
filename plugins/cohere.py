"""Cohere's Command R, Command A and Aya, and their experts."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

cohere = Architecture(
    name="cohere",
    model_types=("cohere", "cohere2", "cohere_compass_text"),
    class_names=("CohereForCausalLM", "Cohere2ForCausalLM", "CohereCompassForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<PAD>",),
        turn_end="<|END_OF_TURN_TOKEN|>",
    ),
    example={
        "model_type": "cohere",
        "architectures": ["CohereForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "rope_parameters": {"full_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
    },
    source="transformers, models/cohere, cohere2, cohere_compass; Cohere 2025 "
    "(arXiv:2504.00698), Aryabumi et al. 2024 (arXiv:2405.15032)",
)
cohere2_moe = Architecture(
    name="cohere2_moe",
    model_types=("cohere2_moe",),
    class_names=("Cohere2MoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"cohere2_moe": ("gate_proj", "up_proj", "down_proj")},
    ),
    tokenizer=cohere.tokenizer,
    example={
        "model_type": "cohere2_moe",
        "architectures": ["Cohere2MoeForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/cohere2_moe/modeling_cohere2_moe.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Cohere's Command R, Command A and Aya, and their experts."""
    return [cohere, cohere2_moe]
