"""Qwen 1.5, 2, 2.5 and 3, dense."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, LoraTargets, TokenizerPolicy, hookimpl

qwen = Architecture(
    name="qwen",
    model_types=("qwen2", "qwen3"),
    class_names=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    # Base checkpoints bring a chat template as well, whose <|im_end|> then ends the turn.
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        bos="forbidden",
        turn_end="<|im_end|>",
        stop=("<|endoftext|>",),
    ),
    example={
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
    },
    source="transformers, models/qwen2 and models/qwen3; Qwen Team 2024 (arXiv:2412.15115), "
    "2025 (arXiv:2505.09388)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide dense Qwen."""
    return [qwen]
