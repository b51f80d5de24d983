"""Doge: attention with a dynamic mask."""

from qlora_core import Architecture, LoraTargets, hookimpl

doge = Architecture(
    name="doge",
    model_types=("doge",),
    class_names=("DogeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "dt_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    example={
        "model_type": "doge",
        "architectures": ["DogeForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/doge/modeling_doge.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Doge."""
    return [doge]
