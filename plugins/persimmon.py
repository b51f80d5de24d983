"""Persimmon 8B, and Fuyu, which feeds it image patches."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

persimmon = Architecture(
    name="persimmon",
    model_types=("persimmon",),
    class_names=("PersimmonForCausalLM",),
    targets=LoraTargets(
        attention=("query_key_value", "dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        final_norm="model.final_layernorm",
    ),
    example={
        "model_type": "persimmon",
        "architectures": ["PersimmonForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/persimmon/modeling_persimmon.py; Adept 2023",
)
fuyu = Architecture(
    name="fuyu",
    model_types=("fuyu",),
    class_names=("FuyuForCausalLM",),
    supersedes=("persimmon",),
    targets=LoraTargets(
        attention=("query_key_value", "dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        outside=("vision_embed_tokens",),
    ),
    layout=Layout(
        layers="model.language_model.layers",
        final_norm="model.language_model.final_layernorm",
        embeddings="model.language_model.embed_tokens",
    ),
    example={
        "model_type": "fuyu",
        "architectures": ["FuyuForCausalLM"],
        "patch_size": 8,
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "persimmon",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 512,
        },
    },
    source="transformers, models/fuyu/modeling_fuyu.py; Adept 2023",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Persimmon 8B, and Fuyu, which feeds it image patches."""
    return [persimmon, fuyu]
