"""Inkling: relative attention, and experts of two kinds."""

from qlora_core import Architecture, LoraTargets, hookimpl

inkling = Architecture(
    name="inkling",
    model_types=("inkling_text",),
    class_names=("InklingForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "r_proj", "o_proj"),
        experts=(
            "experts.gate_up_proj",
            "experts.down_proj",
            "shared_experts.gate_proj",
            "shared_experts.up_proj",
            "shared_experts.down_proj",
        ),
    ),
    example={
        "model_type": "inkling_text",
        "architectures": ["InklingForCausalLM"],
        "d_rel": 8,
        "head_dim": 16,
        "hidden_size": 64,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rel_extent": 32,
        "swa_head_dim": 16,
        "swa_num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/inkling/modeling_inkling.py",
)
inkling2 = Architecture(
    name="inkling2",
    model_types=("inkling2_text",),
    class_names=("Inkling2ForCausalLM",),
    targets=LoraTargets(
        attention=(
            "q_proj",
            "k_proj",
            "v_proj",
            "r_proj",
            "o_proj",
            "gate_proj",
            "sink_proj",
            "weight_proj",
        ),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "inkling2_text",
        "architectures": ["Inkling2ForCausalLM"],
        "d_rel": 8,
        "head_dim": 16,
        "hidden_size": 64,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/inkling2/modeling_inkling2.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Inkling."""
    return [inkling, inkling2]
