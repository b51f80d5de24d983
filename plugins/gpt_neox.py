"""GPT-NeoX 20B, Pythia and their descendants."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gpt_neox = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    class_names=("GPTNeoXForCausalLM",),
    targets=LoraTargets(
        attention=("attention.query_key_value", "attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        embeddings="gpt_neox.embed_in",
        head=("lm_head", "embed_out"),  # embed_out in transformers 5.0, and in checkpoints
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(pad=("<|padding|>",)),
    example={
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
    source="transformers, models/gpt_neox/modeling_gpt_neox.py; Black et al. 2022 "
    "(arXiv:2204.06745)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide GPT-NeoX."""
    return [gpt_neox]
