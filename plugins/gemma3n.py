"""Gemma 3n, whose layers also read an embedding of their own: the text model, and all of it.

The whole of it sees through timm, and was described from the source of its class.
"""

from dataclasses import replace

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

gemma3n_text = Architecture(
    name="gemma3n_text",
    model_types=("gemma3n_text",),
    class_names=("Gemma3nForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=(
            "gate_proj",
            "up_proj",
            "down_proj",
            "linear_left",
            "linear_right",
            "per_layer_input_gate",
            "per_layer_projection",
        ),
        never={
            "altup.modality_router": "a router: adapting it unbalances the experts",
            "altup.correction_coefs": "its weight is read directly, past any adapter",
            "altup.prediction_coefs": "its weight is read directly, past any adapter",
        },
        keep_unquantized={
            "correction_coefs": "its weight is used directly, which fails on packed 4-bit values",
            "prediction_coefs": "its weight is used directly, which fails on packed 4-bit values",
        },
        dequantize_on_access=(
            "correction_coefs",
            "prediction_coefs",
        ),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<pad>",),
        bos="required",
        turn_end="<end_of_turn>",
    ),
    example={
        "model_type": "gemma3n_text",
        "architectures": ["Gemma3nForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "hidden_size_per_layer_input": 16,
        "intermediate_size": [128, 128, 128, 128],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 2,
        "vocab_size": 512,
        "vocab_size_per_layer_input": 512,
    },
    source="transformers, models/gemma3n/modeling_gemma3n.py",
)

gemma3n = replace(
    gemma3n_text,
    name="gemma3n",
    model_types=("gemma3n",),
    class_names=("Gemma3nForConditionalGeneration",),
    supersedes=("gemma3n_text",),
    targets=replace(
        gemma3n_text.targets,
        outside=("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
    ),
    layout=Layout(
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        embeddings="model.language_model.embed_tokens",
    ),
    example={
        "model_type": "gemma3n",
        "architectures": ["Gemma3nForConditionalGeneration"],
        "text_config": dict(gemma3n_text.example),
    },
    not_built="its vision tower needs timm",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Gemma 3n."""
    return [gemma3n_text, gemma3n]
