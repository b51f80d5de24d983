"""Llama 1 to 3.x and its many descendants."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

llama = Architecture(
    name="llama",
    model_types=("llama", "code_llama"),
    class_names=("LlamaForCausalLM", "LLaMAForCausalLM", "LLaMaForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<unk>"),
        bos="required",
        # Llama 3: the base vocabulary holds it untrained, so it only ends chat templates' turns.
        turn_end="<|eot_id|>",
        stop=("<|eom_id|>",),
    ),
    example={
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
    source="transformers, models/llama/modeling_llama.py; Touvron et al. 2023 (arXiv:2302.13971)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Llama."""
    return [llama]
