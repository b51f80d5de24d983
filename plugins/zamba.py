"""Zamba 1 and 2: one transformer block, shared by places among Mamba layers."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

zamba = Architecture(
    name="zamba",
    since="5.23",
    model_types=("zamba",),
    class_names=("ZambaForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj", "linear"),
        recurrent=("in_proj", "out_proj"),
        dequantize_on_access=("x_proj_weight", "dt_proj_weight"),
    ),
    layout=Layout(
        final_norm="model.final_layernorm",
    ),
    example={
        "model_type": "zamba",
        "architectures": ["ZambaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    },
    source="transformers, models/zamba/modeling_zamba.py; Glorioso et al. 2024 (arXiv:2405.16712)",
)
zamba2 = Architecture(
    name="zamba2",
    since="5.23",
    model_types=("zamba2",),
    class_names=("Zamba2ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("linear", "gate_up_proj", "down_proj"),
        recurrent=("in_proj",),
        never={
            "mamba.out_proj": "its weight is read directly, past any adapter",
            "gate_up_proj_adapter_list": "each place calls one of these, the rest are idle",
        },
        keep_unquantized={
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("out_proj",),
    ),
    layout=zamba.layout,
    example={
        "model_type": "zamba2",
        "architectures": ["Zamba2ForCausalLM"],
        "hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 512,
    },
    source="transformers, models/zamba2/modeling_zamba2.py; Glorioso et al. 2024 "
    "(arXiv:2411.15242)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Zamba 1 and 2."""
    return [zamba, zamba2]
