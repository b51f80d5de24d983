"""Llama 3.2 Vision: Llama 3.1 with layers between that look at an image."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

mllama = Architecture(
    name="mllama",
    model_types=("mllama",),
    class_names=("MllamaForCausalLM",),
    targets=LoraTargets(
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        never={
            "cross_attn.q_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.k_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.v_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.o_proj": "cross-attention: here it has nothing to attend to",
            "mlp.gate_proj": "a text skips the layers that look at an image, their MLPs too",
            "mlp.up_proj": "a text skips the layers that look at an image, their MLPs too",
            "mlp.down_proj": "a text skips the layers that look at an image, their MLPs too",
        },
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|finetune_right_pad_id|>",),
        bos="required",
        turn_end="<|eot_id|>",
        stop=("<|eom_id|>",),
    ),
    example={
        "model_type": "mllama",
        "architectures": ["MllamaForCausalLM"],
        "text_config": {
            "cross_attention_layers": [1],
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "mllama_text_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "vocab_size": 512,
        },
    },
    source="transformers, models/mllama/modeling_mllama.py; Grattafiori et al. 2024 "
    "(arXiv:2407.21783)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Llama 3.2 Vision."""
    return [mllama]
