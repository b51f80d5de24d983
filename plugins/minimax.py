"""MiniMax: lightning attention in the first, plain attention and experts in all."""

from qlora_core import Architecture, LoraTargets, hookimpl

minimax = Architecture(
    name="minimax",
    model_types=("minimax",),
    class_names=("MiniMaxForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "output_gate"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"minimax": ("w1", "w2", "w3")},
    ),
    example={
        "model_type": "minimax",
        "architectures": ["MiniMaxForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/minimax/modeling_minimax.py; MiniMax 2025 (arXiv:2501.08313)",
)
minimax_m2 = Architecture(
    name="minimax_m2",
    model_types=("minimax_m2",),
    class_names=("MiniMaxM2ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"minimax_m2": ("w1", "w2", "w3")},
    ),
    example={
        **minimax.example,
        "model_type": "minimax_m2",
        "architectures": ["MiniMaxM2ForCausalLM"],
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    },
    source="transformers, models/minimax_m2/modeling_minimax_m2.py",
)
minimax_m3 = Architecture(
    name="minimax_m3",
    model_types=("minimax_m3_vl_text",),
    class_names=("MiniMaxM3VLForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        **minimax.example,
        "model_type": "minimax_m3_vl_text",
        "architectures": ["MiniMaxM3VLForCausalLM"],
        "num_local_experts": 4,
        "shared_intermediate_size": 64,
    },
    source="transformers, models/minimax_m3_vl/modeling_minimax_m3_vl.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide MiniMax."""
    return [minimax, minimax_m2, minimax_m3]
