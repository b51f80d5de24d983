"""gpt-oss, whose experts come in MXFP4."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

gpt_oss = Architecture(
    name="gpt_oss",
    model_types=("gpt_oss",),
    class_names=("GptOssForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.router": "a router: adapting it unbalances the experts",
        },
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        turn_end="<|return|>",
    ),
    example={
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 512,
    },
    source="transformers, models/gpt_oss/modeling_gpt_oss.py; OpenAI 2025 (arXiv:2508.10925)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide gpt-oss, whose experts come in MXFP4."""
    return [gpt_oss]
