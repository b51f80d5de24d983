"""Mamba 1 and 2, and Falcon Mamba: no attention at all."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

mamba = Architecture(
    name="mamba",
    model_types=("mamba",),
    class_names=("MambaForCausalLM",),
    targets=LoraTargets(
        recurrent=("in_proj",),
        never={
            "mixer.x_proj": "its weight is read directly, past any adapter",
            "mixer.dt_proj": "its weight is read directly, past any adapter",
            "mixer.out_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "x_proj": "its weight is used directly, which fails on packed 4-bit values",
            "dt_proj": "its weight is used directly, which fails on packed 4-bit values",
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=(
            "x_proj",
            "dt_proj",
            "out_proj",
        ),
    ),
    layout=Layout(
        layers="backbone.layers",
        final_norm="backbone.norm_f",
        embeddings="backbone.embeddings",
    ),
    example={
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mamba/modeling_mamba.py; Gu and Dao 2023 (arXiv:2312.00752)",
)
falcon_mamba = Architecture(
    name="falcon_mamba",
    model_types=("falcon_mamba",),
    class_names=("FalconMambaForCausalLM",),
    targets=mamba.targets,
    layout=mamba.layout,
    example={
        "model_type": "falcon_mamba",
        "architectures": ["FalconMambaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/falcon_mamba/modeling_falcon_mamba.py; Zuo et al. 2024 "
    "(arXiv:2410.05355)",
)
mamba2 = Architecture(
    name="mamba2",
    model_types=("mamba2",),
    class_names=("Mamba2ForCausalLM",),
    targets=LoraTargets(
        recurrent=("in_proj",),
        never={
            "mixer.out_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("out_proj",),
    ),
    layout=mamba.layout,
    example={
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "n_groups": 1,
        "num_heads": 8,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mamba2/modeling_mamba2.py; Dao and Gu 2024 (arXiv:2405.21060)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Mamba 1 and 2, and Falcon Mamba."""
    return [mamba, falcon_mamba, mamba2]
