"""Mixtures of experts whose attention has an output gate."""

from qlora_core import Architecture, LoraTargets, hookimpl

afmoe = Architecture(
    name="afmoe",
    since="5.23",
    model_types=("afmoe",),
    class_names=("AfmoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "self_attn.gate_proj"),
        mlp=("mlp.gate_proj", "up_proj", "down_proj", "shared_experts.gate_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "router.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"afmoe": ("gate_proj", "up_proj", "down_proj")},
    ),
    example={
        "model_type": "afmoe",
        "architectures": ["AfmoeForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/afmoe/modeling_afmoe.py",
)
beam = Architecture(
    name="beam",
    model_types=("beam",),
    class_names=("BeamForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "self_attn.gate_proj"),
        mlp=("mlp.gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"beam": ("gate_proj", "up_proj", "down_proj")},
    ),
    example={
        **afmoe.example,
        "model_type": "beam",
        "architectures": ["BeamForCausalLM"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "n_group": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "topk_group": 1,
    },
    source="transformers, models/beam/modeling_beam.py",
)
laguna = Architecture(
    name="laguna",
    model_types=("laguna",),
    class_names=("LagunaForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "g_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "laguna",
        "architectures": ["LagunaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/laguna/modeling_laguna.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Mixtures of experts whose attention has an output gate."""
    return [afmoe, beam, laguna]
