"""BLT: bytes, grouped into patches by a small model of their entropy."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

blt = Architecture(
    name="blt",
    model_types=("blt",),
    class_names=("BltForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        never={
            "patcher": "groups bytes, without a gradient",
        },
        outside=("patcher",),
    ),
    layout=Layout(
        layers="model.local_encoder.layers",
        embeddings="model.local_encoder.embed_tokens",
    ),
    example={
        "model_type": "blt",
        "architectures": ["BltForCausalLM"],
        "decoder_config": {
            "hidden_size": 64,
            "hidden_size_global": 64,
            "intermediate_size": 128,
            "model_type": "blt_local_decoder",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 260,
        },
        "encoder_config": {
            "hidden_size": 64,
            "model_type": "blt_local_encoder",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 260,
        },
        "encoder_hash_byte_group_vocab": 128,
        "global_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "blt_global_transformer",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
        "patcher_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "blt_patcher",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 260,
        },
        "vocab_size": 260,
    },
    source="transformers, models/blt/modeling_blt.py; Pagnoni et al. 2024 (arXiv:2412.09871)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide BLT."""
    return [blt]
