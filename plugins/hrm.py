"""HRM-Text: two recurrent stacks of gated attention."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

hrm_text = Architecture(
    name="hrm_text",
    model_types=("hrm_text",),
    class_names=("HrmTextForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "self_attn.gate_proj"),
        mlp=("mlp.gate_proj", "up_proj", "down_proj"),
    ),
    layout=Layout(
        layers="model.L_module.layers",
        final_norm="model.L_module.final_norm",
    ),
    example={
        "model_type": "hrm_text",
        "architectures": ["HrmTextForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/hrm_text/modeling_hrm_text.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide HRM-Text."""
    return [hrm_text]
