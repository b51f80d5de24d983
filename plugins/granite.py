"""IBM's Granite: dense, with experts, and the hybrid with Mamba 2 layers."""

from qlora_core import Architecture, LoraTargets, hookimpl

granite = Architecture(
    name="granite",
    model_types=("granite", "granite_swa"),
    class_names=("GraniteForCausalLM", "GraniteSWAForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    example={
        "model_type": "granite",
        "architectures": ["GraniteForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "num_key_value_heads": 2,
    },
    source="transformers, models/granite, granite_swa; Mishra et al. 2024 (arXiv:2405.04324)",
)
granite_moe = Architecture(
    name="granite_moe",
    since="5.23",
    model_types=("granitemoe", "granitemoe_swa"),
    class_names=("GraniteMoeForCausalLM", "GraniteMoeSWAForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "block_sparse_moe.router": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "granitemoe",
        "architectures": ["GraniteMoeForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/granitemoe, granitemoe_swa",
)
granite_moe_shared = Architecture(
    name="granite_moe_shared",
    since="5.23",
    model_types=("granitemoeshared",),
    class_names=("GraniteMoeSharedForCausalLM",),
    targets=granite_moe.targets,
    example={
        "model_type": "granitemoeshared",
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/granitemoeshared/modeling_granitemoeshared.py",
)
granite_hybrid = Architecture(
    name="granite_hybrid",
    since="5.23",
    model_types=("granitemoehybrid",),
    class_names=("GraniteMoeHybridForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("input_linear", "output_linear"),
        recurrent=("in_proj",),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "block_sparse_moe.router": "a router: adapting it unbalances the experts",
            "mamba.out_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("out_proj",),
    ),
    example={
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_d_state": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "shared_intermediate_size": 64,
        "vocab_size": 512,
    },
    source="transformers, models/granitemoehybrid/modeling_granitemoehybrid.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide IBM's Granite."""
    return [granite, granite_moe, granite_moe_shared, granite_hybrid]
