"""Decoders with DeepSeek's latent attention under names of their own."""

from dataclasses import replace

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
ROUTER = {"mlp.gate": "a router: adapting it unbalances the experts"}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "vocab_size": 512,
}
MIXTURE = {"moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2}

mixture = LoraTargets(attention=ATTENTION, mlp=MLP, experts=EXPERTS, never=ROUTER)
sparse = replace(
    mixture,
    never={
        **ROUTER,
        **dict.fromkeys(
            ("indexer.wq_b", "indexer.wk", "indexer.weights_proj"),
            "chooses tokens by a top-k, through which no gradient comes",
        ),
    },
    keep_unquantized={
        "weights_proj": "its input is cast to its weight's dtype: integers, in 4 bits",
    },
    dequantize_on_access=("weights_proj",),
)
"""Attention to tokens that an indexer chose."""

minicpm3 = Architecture(
    name="minicpm3",
    model_types=("minicpm3",),
    class_names=("MiniCPM3ForCausalLM",),
    targets=LoraTargets(attention=ATTENTION, mlp=MLP),
    tokenizer=TokenizerPolicy(turn_end="<|im_end|>"),
    example={**SIZES, "model_type": "minicpm3", "architectures": ["MiniCPM3ForCausalLM"]},
    source="transformers, models/minicpm3/modeling_minicpm3.py; Hu et al. 2024 (arXiv:2404.06395)",
)
youtu = Architecture(
    name="youtu",
    model_types=("youtu",),
    class_names=("YoutuForCausalLM",),
    targets=minicpm3.targets,
    example={
        **SIZES,
        "model_type": "youtu",
        "architectures": ["YoutuForCausalLM"],
        "qk_nope_head_dim": 16,
    },
    source="transformers, models/youtu/modeling_youtu.py",
)
axk1 = Architecture(
    name="axk1",
    model_types=("axk1",),
    class_names=("AXK1ForCausalLM",),
    targets=mixture,
    example={
        **SIZES,
        **MIXTURE,
        "model_type": "axk1",
        "architectures": ["AXK1ForCausalLM"],
        "n_group": 2,
        "qk_nope_head_dim": 16,
        "topk_group": 1,
    },
    source="transformers, models/axk1/modeling_axk1.py",
)
axk2 = Architecture(
    name="axk2",
    model_types=("axk2",),
    class_names=("AXK2ForCausalLM",),
    targets=replace(
        sparse,
        attention=("q_a_proj", "q_gate_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        mlp=(*MLP, "fc1", "fc2"),
    ),
    example={
        **SIZES,
        **MIXTURE,
        "model_type": "axk2",
        "architectures": ["AXK2ForCausalLM"],
        "index_head_dim": 16,
        "qk_rope_head_dim": 16,
    },
    source="transformers, models/axk2/modeling_axk2.py",
)
longcat_flash = Architecture(
    name="longcat_flash",
    model_types=("longcat_flash",),
    class_names=("LongcatFlashForCausalLM",),
    targets=replace(
        mixture,
        never={"router.classifier": ROUTER["mlp.gate"]},
        keep_unquantized={
            "classifier": "its weight is used directly, which fails on packed 4-bit values",
        },
        taken_for_experts={"longcat_flash": MLP},
    ),
    example={
        "model_type": "longcat_flash",
        "architectures": ["LongcatFlashForCausalLM"],
        "expert_ffn_hidden_size": 64,
        "ffn_hidden_size": 128,
        "head_dim": 16,
        "hidden_size": 64,
        "kv_lora_rank": 32,
        "moe_topk": 2,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_layers": 2,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "vocab_size": 512,
        "zero_expert_num": 2,
    },
    source="transformers, models/longcat_flash/modeling_longcat_flash.py; Meituan 2025 "
    "(arXiv:2509.01322)",
)
hy_v4 = Architecture(
    name="hy_v4",
    model_types=("hy_v4",),
    class_names=("HYV4ForCausalLM",),
    targets=replace(
        sparse,
        attention=(*ATTENTION, "self_attn.gate_proj"),
        mlp=("mlp.gate_proj", "up_proj", "down_proj", "shared_experts.gate_proj"),
    ),
    example={
        **SIZES,
        **MIXTURE,
        "model_type": "hy_v4",
        "architectures": ["HYV4ForCausalLM"],
        "index_head_dim": 16,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    source="transformers, models/hy_v4/modeling_hy_v4.py",
)
DOTS3_TEXT = {
    **SIZES,
    **MIXTURE,
    "model_type": "dots3_note_text",
    "index_head_dim": 16,
    "index_n_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "shared_experts_intermediate_size": 64,
    "swa_kv_lora_rank": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_qk_nope_head_dim": 16,
}
DOTS3_TOWER = {
    "adapter_out_dim": 64,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
dots3_note_text = Architecture(
    name="dots3_note_text",
    model_types=("dots3_note_text",),
    class_names=("Dots3NoteForCausalLM",),
    targets=replace(sparse, attention=(*ATTENTION, "g_proj")),
    example={**DOTS3_TEXT, "architectures": ["Dots3NoteForCausalLM"]},
    source="transformers, models/dots3_note/modeling_dots3_note.py",
)
dots3_note = replace(
    dots3_note_text,
    name="dots3_note",
    model_types=("dots3_note",),
    supersedes=("dots3_note_text",),
    example={
        "model_type": "dots3_note",
        "architectures": ["Dots3NoteForCausalLM"],
        "text_config": DOTS3_TEXT,
        "audio_config": {
            **DOTS3_TOWER,
            "model_type": "dots3_note_audio_encoder",
            "adapter_input_size": 64,
        },
        "vision_config": {
            **DOTS3_TOWER,
            "model_type": "dots3_note_vision_encoder",
            "adapter_in_dim": 64,
            "mlp_layer_types": ["dense", "sparse"],
        },
    },
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Decoders with DeepSeek's latent attention under names of their own."""
    return [minicpm3, youtu, axk1, axk2, longcat_flash, hy_v4, dots3_note_text, dots3_note]
