"""Llama 4: experts in some layers, dense MLPs in others."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

llama4_text = Architecture(
    name="llama4_text",
    since="5.23",
    model_types=("llama4_text",),
    class_names=("Llama4ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "feed_forward.router": "a router: adapting it unbalances the experts",
        },
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|finetune_right_pad|>",),
        turn_end="<|eot|>",
    ),
    example={
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 512,
    },
    source="transformers, models/llama4/modeling_llama4.py; Meta 2025",
)
llama4 = Architecture(
    name="llama4",
    since="5.23",
    model_types=("llama4",),
    class_names=("Llama4ForCausalLM",),
    supersedes=("llama4_text",),
    targets=llama4_text.targets,
    tokenizer=llama4_text.tokenizer,
    example={
        "model_type": "llama4",
        "architectures": ["Llama4ForCausalLM"],
        "text_config": {
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "llama4_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "vocab_size": 512,
        },
    },
    source="transformers, models/llama4/modeling_llama4.py; Meta 2025",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Llama 4."""
    return [llama4_text, llama4]
