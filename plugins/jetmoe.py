"""JetMoE, whose attention has experts as well."""

from qlora_core import Architecture, LoraTargets, hookimpl

jetmoe = Architecture(
    name="jetmoe",
    model_types=("jetmoe",),
    class_names=("JetMoeForCausalLM",),
    targets=LoraTargets(
        attention=("kv_proj",),
        experts=("input_linear.weight", "output_linear.weight"),
        never={
            "router.layer": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "jetmoe",
        "architectures": ["JetMoeForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "kv_channels": 16,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 512,
    },
    source="transformers, models/jetmoe/modeling_jetmoe.py; Shen et al. 2024 (arXiv:2404.07413)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide JetMoE, whose attention has experts as well."""
    return [jetmoe]
