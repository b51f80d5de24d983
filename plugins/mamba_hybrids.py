"""Attention among Mamba layers: Bamba, Falcon-H1, Jamba."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

bamba = Architecture(
    name="bamba",
    since="5.23",
    model_types=("bamba",),
    class_names=("BambaForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=("in_proj",),
        never={
            "mamba.out_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("out_proj",),
    ),
    layout=Layout(
        final_norm="model.final_layernorm",
    ),
    example={
        "model_type": "bamba",
        "architectures": ["BambaForCausalLM"],
        "attn_layer_indices": [1],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/bamba/modeling_bamba.py; IBM 2024",
)
falcon_h1 = Architecture(
    name="falcon_h1",
    since="5.23",
    model_types=("falcon_h1",),
    class_names=("FalconH1ForCausalLM",),
    targets=bamba.targets,
    layout=bamba.layout,
    example={
        "model_type": "falcon_h1",
        "architectures": ["FalconH1ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "mamba_d_ssm": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/falcon_h1/modeling_falcon_h1.py; Zuo et al. 2025 "
    "(arXiv:2507.22448)",
)
jamba = Architecture(
    name="jamba",
    since="5.23",
    model_types=("jamba",),
    class_names=("JambaForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=("in_proj", "x_proj", "out_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "feed_forward.router": "a router: adapting it unbalances the experts",
            "mamba.dt_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "dt_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("dt_proj",),
    ),
    layout=bamba.layout,
    example={
        "model_type": "jamba",
        "architectures": ["JambaForCausalLM"],
        "attn_layer_offset": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/jamba/modeling_jamba.py; Lieber et al. 2024 (arXiv:2403.19887)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Attention among Mamba layers."""
    return [bamba, falcon_h1, jamba]
