"""Gemma 1 to 3 and VaultGemma: the text models, and Gemma 3 with its vision tower."""

from dataclasses import replace

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gemma = Architecture(
    name="gemma",
    model_types=("gemma", "gemma2", "gemma3_text", "vaultgemma"),
    class_names=(
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "VaultGemmaForCausalLM",
    ),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<pad>",),
        bos="required",  # without it the perplexity of 7B rises from 3.5 to 10^9
        turn_end="<end_of_turn>",  # a chat model's; <eos> ends its texts, not its turns
    ),
    example={
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "vocab_size": 256,
    },
    source="transformers, models/gemma, gemma2, gemma3 and vaultgemma; Gemma Team 2024 "
    "(arXiv:2403.08295, arXiv:2408.00118), 2025 (arXiv:2503.19786); "
    "lm-evaluation-harness #1465 for the BOS",
)
gemma3 = replace(
    gemma,
    name="gemma3",
    model_types=("gemma3",),
    class_names=("Gemma3ForConditionalGeneration",),
    supersedes=("gemma",),  # which fits the nested text_config as well
    targets=replace(gemma.targets, outside=("vision_tower", "multi_modal_projector")),
    layout=Layout(
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        embeddings="model.language_model.embed_tokens",
    ),
    example={
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {**gemma.example, "model_type": "gemma3_text"},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        "mm_tokens_per_image": 16,
        "boi_token_index": 250,
        "eoi_token_index": 251,
        "image_token_index": 252,
    },
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Gemma, and Gemma 3 with its vision tower."""
    return [gemma, gemma3]
