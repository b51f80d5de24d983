"""GPT-NeoX Japanese."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

gpt_neox_japanese = Architecture(
    name="gpt_neox_japanese",
    model_types=("gpt_neox_japanese",),
    class_names=("GPTNeoXJapaneseForCausalLM",),
    targets=LoraTargets(
        attention=("query_key_value", "dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        layers="gpt_neox_japanese.layers",
        final_norm="gpt_neox_japanese.final_layer_norm",
        embeddings="gpt_neox_japanese.embed_in",
        head=("embed_out",),
    ),
    example={
        "model_type": "gpt_neox_japanese",
        "architectures": ["GPTNeoXJapaneseForCausalLM"],
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/gpt_neox_japanese/modeling_gpt_neox_japanese.py; abeja, 2022",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide GPT-NeoX Japanese."""
    return [gpt_neox_japanese]
