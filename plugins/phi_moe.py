"""Phi 3.5 MoE and Phi 4 multimodal."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

phimoe = Architecture(
    name="phimoe",
    since="5.23",
    model_types=("phimoe",),
    class_names=("PhimoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.router": "a router: adapting it unbalances the experts",
        },
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        turn_end="<|end|>",
    ),
    example={
        "model_type": "phimoe",
        "architectures": ["PhimoeForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 512,
    },
    source="transformers, models/phimoe/modeling_phimoe.py; Abdin et al. 2024 (arXiv:2404.14219)",
)
phi4_multimodal = Architecture(
    name="phi4_multimodal",
    model_types=("phi4_multimodal",),
    class_names=("Phi4MultimodalForCausalLM",),
    targets=LoraTargets(
        attention=("o_proj", "qkv_proj"),
        mlp=("gate_up_proj", "down_proj"),
        outside=("embed_tokens_extend",),
    ),
    tokenizer=phimoe.tokenizer,
    example={
        "model_type": "phi4_multimodal",
        "architectures": ["Phi4MultimodalForCausalLM"],
        "audio_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "phi4_multimodal_audio",
            "num_attention_heads": 4,
            "num_blocks": 1,
            "nemo_conv_channels": 64,
        },
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "vision_config": {
            "hidden_size": 64,
            "model_type": "phi4_multimodal_vision",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
        },
        "vocab_size": 512,
    },
    source="transformers, models/phi4_multimodal/modeling_phi4_multimodal.py; Microsoft 2025 "
    "(arXiv:2503.01743)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Phi 3.5 MoE and Phi 4 multimodal."""
    return [phimoe, phi4_multimodal]
