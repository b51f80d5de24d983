"""Gemma 4: the text models, and the models that also see and hear."""

from dataclasses import replace

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gemma4_text = Architecture(
    name="gemma4_text",
    model_types=("gemma4_text",),
    class_names=("Gemma4ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj", "per_layer_input_gate", "per_layer_projection"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "router.proj": "a router: adapting it unbalances the experts",
        },
    ),
    tokenizer=TokenizerPolicy(
        pad=("<pad>",),
        bos="required",
        turn_end="<turn|>",
    ),
    example={
        "model_type": "gemma4_text",
        "architectures": ["Gemma4ForCausalLM"],
        "global_head_dim": 16,
        "head_dim": 16,
        "hidden_size": 64,
        "hidden_size_per_layer_input": 16,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "vocab_size_per_layer_input": 512,
        "enable_moe_block": True,
        "moe_intermediate_size": 64,
        "num_experts": 4,
        "top_k_experts": 2,
    },
    source="transformers, models/gemma4/modeling_gemma4.py",
)
gemma4 = Architecture(
    name="gemma4",
    model_types=("gemma4",),
    class_names=("Gemma4ForConditionalGeneration",),
    supersedes=("gemma4_text",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj", "per_layer_input_gate", "per_layer_projection"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "router.proj": "a router: adapting it unbalances the experts",
        },
        outside=("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
    ),
    layout=Layout(
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        embeddings="model.language_model.embed_tokens",
    ),
    tokenizer=gemma4_text.tokenizer,
    example={
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "text_config": {
            "global_head_dim": 16,
            "head_dim": 16,
            "hidden_size": 64,
            "hidden_size_per_layer_input": 16,
            "intermediate_size": 128,
            "model_type": "gemma4_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "vocab_size_per_layer_input": 512,
            "enable_moe_block": True,
            "moe_intermediate_size": 64,
            "num_experts": 4,
            "top_k_experts": 2,
        },
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "patch_size": 8,
        },
        "audio_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
    source="transformers, models/gemma4/modeling_gemma4.py",
)
gemma4_unified_text = Architecture(
    name="gemma4_unified_text",
    model_types=("gemma4_unified_text",),
    class_names=("Gemma4UnifiedForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=gemma4_text.tokenizer,
    example={
        "model_type": "gemma4_unified_text",
        "architectures": ["Gemma4UnifiedForCausalLM"],
        "global_head_dim": 16,
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/gemma4_unified/modeling_gemma4_unified.py",
)
gemma4_unified = Architecture(
    name="gemma4_unified",
    model_types=("gemma4_unified",),
    class_names=("Gemma4UnifiedForConditionalGeneration",),
    supersedes=("gemma4_unified_text",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        outside=("embed_vision", "embed_audio"),
    ),
    layout=gemma4.layout,
    tokenizer=gemma4_text.tokenizer,
    example={
        "model_type": "gemma4_unified",
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "text_config": {
            "global_head_dim": 16,
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "gemma4_unified_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        "vision_config": {"mm_embed_dim": 64, "mm_posemb_size": 16, "output_proj_dims": 64},
        "audio_config": {},
    },
    source="transformers, models/gemma4_unified/modeling_gemma4_unified.py",
)

gemma4_assistant = replace(
    gemma4_text,
    name="gemma4_assistant",
    model_types=("gemma4_assistant", "gemma4_unified_assistant"),
    class_names=("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
    supersedes=("gemma4_text", "gemma4_unified_text"),
    targets=LoraTargets(
        attention=("q_proj", "o_proj"),
        mlp=gemma4_text.targets.mlp,
        outside=("pre_projection", "post_projection", "masked_embedding"),
    ),
    example={
        "model_type": "gemma4_assistant",
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": 64,
        "text_config": {**gemma4_text.example, "num_kv_shared_layers": 4},
    },
    not_built="transformers 5.23 demands that all layers share their keys, and refuses just that",
    source="transformers, models/gemma4_assistant, gemma4_unified_assistant",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Gemma 4."""
    return [gemma4_text, gemma4, gemma4_unified_text, gemma4_unified, gemma4_assistant]
