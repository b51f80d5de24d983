"""Falcon 7B, 11B, 40B and 180B: multi-query, new-decoder and ALiBi variants share their names."""

from qlora_core import Architecture, Layout, LoraTargets, PromptFormat, TokenizerPolicy, hookimpl

falcon = Architecture(
    name="falcon",
    # The others name the same layers in checkpoints from before transformers knew them.
    model_types=("falcon", "RefinedWebModel", "RefinedWeb", "refinedWebModel", "refinedWeb"),
    class_names=("FalconForCausalLM", "RWForCausalLM"),
    # These layers are a subclass of nn.Linear, which stock 4-bit loading passes over.
    targets=LoraTargets(
        attention=("query_key_value", "self_attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
    ),
    layout=Layout(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embeddings="transformer.word_embeddings",
    ),
    # Plain text, as the chat versions were trained with; no token of its own is needed.
    prompt=PromptFormat(
        name="falcon",
        start="",
        system="System:\n{content}\n",
        user="User:\n{content}\n",
        assistant="Falcon:\n{content}{eos}\n",
    ),
    tokenizer=TokenizerPolicy(pad=("<|pad|>", ">>SUFFIX<<"), bos="forbidden"),
    example={
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
    source="transformers, models/falcon/modeling_falcon.py; Almazrouei et al. 2023 "
    "(arXiv:2311.16867); the 180B chat model's card for the prompt",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Falcon."""
    return [falcon]
