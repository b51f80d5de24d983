"""Reformer: attention by hashing."""

from typing import Any

from qlora_core import Architecture, Layout, LoraTargets, hookimpl


def learn_through(model: Any) -> None:
    """Its own backward pass only runs where the embeddings ask for a gradient."""
    model.enable_input_require_grads()


reformer = Architecture(
    name="reformer",
    model_types=("reformer",),
    class_names=("ReformerModelWithLMHead",),
    targets=LoraTargets(
        attention=("query", "key", "attention.output.dense"),
        mlp=("dense.dense", "feed_forward.output.dense"),
        never={
            "self_attention.query_key": "its weight is read directly, past any adapter",
            "self_attention.value": "in layers that hash, its weight is read directly",
        },
        keep_unquantized={
            "query_key": "its weight is used directly, which fails on packed 4-bit values",
            "value": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=(
            "query_key",
            "value",
        ),
    ),
    layout=Layout(
        layers="reformer.encoder.layers",
        final_norm="reformer.encoder.layer_norm",
        embeddings="reformer.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "reformer",
        "architectures": ["ReformerModelWithLMHead"],
        "attention_head_size": 16,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [4, 4],
        "hidden_size": 64,
        "is_decoder": True,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_attention_heads": 4,
        "vocab_size": 320,
    },
    prepare_model=learn_through,
    source="transformers, models/reformer/modeling_reformer.py; Kitaev et al. 2020 "
    "(arXiv:2001.04451)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Reformer."""
    return [reformer]
