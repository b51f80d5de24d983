"""GPT-2, whose layers are Conv1D: a linear map that stores its weight as (in, out)."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gpt2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    class_names=("GPT2LMHeadModel",),
    targets=LoraTargets(attention=("attn.c_attn", "attn.c_proj"), mlp=("mlp.c_fc", "mlp.c_proj")),
    layout=Layout(
        layers="transformer.h", final_norm="transformer.ln_f", embeddings="transformer.wte"
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(pad=("<|endoftext|>",)),  # its only special token
    example={
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
    },
    source="transformers, models/gpt2/modeling_gpt2.py; Radford et al. 2019",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide GPT-2."""
    return [gpt2]
