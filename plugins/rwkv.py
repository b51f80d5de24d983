"""RWKV 4: time mixing and channel mixing."""

from typing import Any

from qlora_core import Architecture, Layout, LoraTargets, hookimpl


def keep_scale(model: Any) -> None:
    """Switch off the halving of every sixth layer in evaluation mode.

    It guards float16 against overflow, is undone by the next norm, and would quantize 4-bit
    layers anew, as FP4. A layer that carries an adapter makes it fail.
    """
    model.config.rescale_every = 0


rwkv = Architecture(
    name="rwkv",
    model_types=("rwkv",),
    class_names=("RwkvForCausalLM",),
    targets=LoraTargets(
        attention=("attention.key", "attention.value", "attention.receptance", "output"),
        mlp=("feed_forward.key", "feed_forward.value", "feed_forward.receptance"),
    ),
    layout=Layout(
        layers="rwkv.blocks",
        final_norm="rwkv.ln_out",
        embeddings="rwkv.embeddings",
        head=("head",),
    ),
    prepare_model=keep_scale,
    example={
        "model_type": "rwkv",
        "architectures": ["RwkvForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/rwkv/modeling_rwkv.py; Peng et al. 2023 (arXiv:2305.13048)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide RWKV 4."""
    return [rwkv]
