"""Ministral, after Mistral."""

from qlora_core import Architecture, LoraTargets, hookimpl

ministral = Architecture(
    name="ministral",
    model_types=("ministral", "ministral3"),
    class_names=("MinistralForCausalLM", "Ministral3ForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    example={
        "model_type": "ministral",
        "architectures": ["MinistralForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/ministral, ministral3; Mistral AI 2024, 2025",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Ministral, after Mistral."""
    return [ministral]
