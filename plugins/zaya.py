"""Zaya: convolved latent attention and experts behind an MLP router."""

from qlora_core import Architecture, LoraTargets, hookimpl

zaya = Architecture(
    name="zaya",
    model_types=("zaya",),
    class_names=("ZayaForCausalLM",),
    targets=LoraTargets(
        attention=("o_proj",),
        recurrent=("q_proj", "k_proj", "v_proj_current", "v_proj_delayed"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "gate.down_proj": "a router: adapting it unbalances the experts",
            "router_mlp.fc1": "a router: adapting it unbalances the experts",
            "router_mlp.fc2": "a router: adapting it unbalances the experts",
            "router_mlp.out_proj": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "zaya",
        "architectures": ["ZayaForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "router_hidden_size": 32,
        "vocab_size": 512,
    },
    source="transformers, models/zaya/modeling_zaya.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Zaya."""
    return [zaya]
