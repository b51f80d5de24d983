"""Mixtral: Mistral's attention, and eight experts in place of each MLP."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

mixtral = Architecture(
    name="mixtral",
    model_types=("mixtral",),
    class_names=("MixtralForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        # One 3-D parameter each: (experts, out, in).
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={"mlp.gate": "the router: adapting it unbalances the experts"},
        taken_for_experts={"mixtral": ("w1", "w2", "w3")},
    ),
    tokenizer=TokenizerPolicy(pad=("<pad>", "<unk>"), bos="required"),
    example={
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 256,
    },
    source="transformers, models/mixtral/modeling_mixtral.py; Jiang et al. 2024 (arXiv:2401.04088)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Mixtral."""
    return [mixtral]
