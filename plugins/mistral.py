"""Mistral 7B and its dense successors."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

mistral = Architecture(
    name="mistral",
    model_types=("mistral",),
    class_names=("MistralForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    # Its chat format is left to chat checkpoints: from v0.3 on [INST] is a control token,
    # which a base model has never seen.
    tokenizer=TokenizerPolicy(pad=("<pad>", "[control_768]", "<unk>"), bos="required"),
    example={
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 32,
        "vocab_size": 256,
    },
    source="transformers, models/mistral/modeling_mistral.py; Jiang et al. 2023 (arXiv:2310.06825)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Mistral."""
    return [mistral]
