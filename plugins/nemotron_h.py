"""Nemotron-H and Nemotron 3: layers of Mamba 2, attention, MLP or experts."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

nemotron_h = Architecture(
    name="nemotron_h",
    model_types=("nemotron_h",),
    class_names=("NemotronHForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("up_proj", "down_proj"),
        recurrent=("in_proj",),
        experts=("experts.up_proj", "experts.down_proj"),
        never={
            "mixer.gate": "a router: adapting it unbalances the experts",
            "mixer.out_proj": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "out_proj": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=("out_proj",),
    ),
    layout=Layout(
        final_norm="model.norm_f",
        embeddings="model.embeddings",
    ),
    example={
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "mamba_num_heads": 8,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 64,
        "n_groups": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/nemotron_h/modeling_nemotron_h.py; NVIDIA 2025 (arXiv:2504.03624)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Nemotron-H and Nemotron 3."""
    return [nemotron_h]
