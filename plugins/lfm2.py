"""Liquid's LFM 2 and 3: short convolutions among attention layers."""

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

lfm2 = Architecture(
    name="lfm2",
    model_types=("lfm2",),
    class_names=("Lfm2ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "self_attn.out_proj"),
        mlp=("w1", "w3", "w2"),
        recurrent=("in_proj", "conv.out_proj"),
    ),
    layout=Layout(
        final_norm="model.embedding_norm",
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|pad|>",),
        turn_end="<|im_end|>",
    ),
    example={
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/lfm2/modeling_lfm2.py",
)
lfm2_moe = Architecture(
    name="lfm2_moe",
    model_types=("lfm2_moe",),
    class_names=("Lfm2MoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "self_attn.out_proj"),
        mlp=("w1", "w3", "w2"),
        recurrent=("in_proj", "conv.out_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "feed_forward.gate": "a router: adapting it unbalances the experts",
        },
    ),
    layout=lfm2.layout,
    tokenizer=lfm2.tokenizer,
    example={
        **lfm2.example,
        "model_type": "lfm2_moe",
        "architectures": ["Lfm2MoeForCausalLM"],
        "moe_intermediate_size": 64,
        "num_experts": 4,
    },
    source="transformers, models/lfm2_moe/modeling_lfm2_moe.py",
)
lfm3 = Architecture(
    name="lfm3",
    model_types=("lfm3",),
    class_names=("Lfm3ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "g_proj"),
        mlp=("w1", "w3", "w2"),
        recurrent=("in_proj", "out_proj"),
    ),
    layout=lfm2.layout,
    example={
        "model_type": "lfm3",
        "architectures": ["Lfm3ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/lfm3/modeling_lfm3.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Liquid's LFM 2 and 3."""
    return [lfm2, lfm2_moe, lfm3]
