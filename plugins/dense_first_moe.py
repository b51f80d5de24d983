"""Mixtures of experts of many makers whose first layers are dense."""

from dataclasses import replace

from qlora_core import Architecture, LoraTargets, hookimpl

dense_first_moe = Architecture(
    name="dense_first_moe",
    model_types=("dots1", "ernie4_5_moe", "exaone_moe", "hy_v3", "kolibri1", "solar_open"),
    class_names=(
        "Dots1ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "ExaoneMoeForCausalLM",
        "HYV3ForCausalLM",
        "Kolibri1ForCausalLM",
        "SolarOpenForCausalLM",
    ),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts=dict.fromkeys(
            ("dots1", "ernie4_5_moe", "exaone_moe", "solar_open"),
            ("gate_proj", "up_proj", "down_proj"),
        ),
    ),
    example={
        "model_type": "dots1",
        "architectures": ["Dots1ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "moe_k": 2,
        "moe_num_experts": 4,
        "num_experts": 4,
        "head_dim": 16,
        "shared_expert_intermediate_size": 64,
    },
    source="transformers, models/dots1, ernie4_5_moe, exaone_moe, hy_v3, kolibri1, solar_open; "
    "Huo et al. 2025 (arXiv:2506.05767) for dots1",
)
flint = replace(
    dense_first_moe,
    name="flint",
    model_types=("flint",),
    class_names=("FlintForCausalLM",),
    example={
        **dense_first_moe.example,
        "model_type": "flint",
        "architectures": ["FlintForCausalLM"],
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
    },
    source="transformers, models/flint/modeling_flint.py",
)
hunyuan_moe = Architecture(
    name="hunyuan_moe",
    model_types=("hunyuan_v1_moe",),
    class_names=("HunYuanMoEV1ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "gate.wg": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"hunyuan_v1_moe": ("gate_proj", "up_proj", "down_proj")},
    ),
    example={
        "model_type": "hunyuan_v1_moe",
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py; Sun et al. 2024 "
    "(arXiv:2411.02265)",
)
mimo_v2_flash = Architecture(
    name="mimo_v2_flash",
    model_types=("mimo_v2_flash",),
    class_names=("MiMoV2FlashForCausalLM",),
    targets=dense_first_moe.targets,
    example={
        "model_type": "mimo_v2_flash",
        "architectures": ["MiMoV2FlashForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mimo_v2_flash/modeling_mimo_v2_flash.py",
)
mellum = Architecture(
    name="mellum",
    model_types=("mellum",),
    class_names=("MellumForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"mellum": ("gate_proj", "up_proj", "down_proj")},
    ),
    example={
        "model_type": "mellum",
        "architectures": ["MellumForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mellum/modeling_mellum.py",
)
aria = Architecture(
    name="aria",
    since="5.23",
    model_types=("aria_text",),
    class_names=("AriaTextForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.router": "a router: adapting it unbalances the experts",
        },
    ),
    example={
        "model_type": "aria_text",
        "architectures": ["AriaTextForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_num_experts": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/aria/modeling_aria.py; Li et al. 2024 (arXiv:2410.05993)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Mixtures of experts of many makers whose first layers are dense."""
    return [dense_first_moe, flint, hunyuan_moe, mimo_v2_flash, mellum, aria]
