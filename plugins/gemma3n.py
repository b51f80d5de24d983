"""Gemma 3n's text model, whose layers also read an embedding of their own."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

gemma3n = Architecture(
    name="gemma3n",
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


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Gemma 3n's text model, whose layers also read an embedding of their own."""
    return [gemma3n]
