"""MPT 7B and 30B."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

mpt = Architecture(
    name="mpt",
    model_types=("mpt",),
    class_names=("MptForCausalLM",),
    targets=LoraTargets(
        attention=("Wqkv", "out_proj"),
        mlp=("up_proj", "down_proj"),
    ),
    layout=Layout(
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        embeddings="transformer.wte",
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
    ),
    example={
        "model_type": "mpt",
        "architectures": ["MptForCausalLM"],
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mpt/modeling_mpt.py; MosaicML 2023",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide MPT 7B and 30B."""
    return [mpt]
