"""Moshi's text decoder."""

from qlora_core import Architecture, LoraTargets, hookimpl

moshi = Architecture(
    name="moshi",
    model_types=("moshi",),
    class_names=("MoshiForCausalLM",),
    targets=LoraTargets(
        attention=("linear",),
        mlp=("fc1", "fc2"),
    ),
    example={
        "model_type": "moshi",
        "architectures": ["MoshiForCausalLM"],
        "ffn_dim": 128,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/moshi/modeling_moshi.py; Defossez et al. 2024 (arXiv:2410.00037)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Moshi's text decoder."""
    return [moshi]
