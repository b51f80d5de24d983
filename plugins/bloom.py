"""BLOOM and BLOOMZ."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

bloom = Architecture(
    name="bloom",
    model_types=("bloom",),
    class_names=("BloomForCausalLM",),
    targets=LoraTargets(
        attention=("query_key_value", "self_attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embeddings="transformer.word_embeddings",
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(pad=("<pad>",)),
    example={
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
    },
    source="transformers, models/bloom/modeling_bloom.py; BigScience 2022 (arXiv:2211.05100)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide BLOOM."""
    return [bloom]
