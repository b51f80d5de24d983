"""Qwen3-Next and later: gated delta layers among the attention layers."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, LoraTargets, TokenizerPolicy, hookimpl

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ROUTERS = dict.fromkeys(
    ("mlp.shared_expert_gate", "mlp.gate"), "a router: adapting it unbalances the experts"
)
MIXTURE = {
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 64,
}
SIZES = {
    "head_dim": 16,
    "hidden_size": 64,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}

qwen3_next = Architecture(
    name="qwen3_next",
    model_types=("qwen3_next",),
    class_names=("Qwen3NextForCausalLM",),
    targets=LoraTargets(
        attention=ATTENTION,
        mlp=MLP,
        recurrent=("in_proj_qkvz", "in_proj_ba", "out_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never=ROUTERS,
        taken_for_experts={"qwen3_next": MLP},
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        bos="forbidden",
        turn_end="<|im_end|>",
        stop=("<|endoftext|>",),
    ),
    example={
        **SIZES,
        **MIXTURE,
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
    },
    source="transformers, models/qwen3_next/modeling_qwen3_next.py",
)
qwen3_5_text = replace(
    qwen3_next,
    name="qwen3_5_text",
    model_types=("qwen3_5_text",),
    class_names=("Qwen3_5ForCausalLM",),
    targets=LoraTargets(
        attention=ATTENTION,
        mlp=MLP,
        recurrent=("out_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ),
    example={
        **SIZES,
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        "intermediate_size": 128,
    },
    source="transformers, models/qwen3_5/modeling_qwen3_5.py",
)
qwen3_5_moe_text = replace(
    qwen3_next,
    name="qwen3_5_moe_text",
    model_types=("qwen3_5_moe_text",),
    class_names=("Qwen3_5MoeForCausalLM",),
    targets=replace(qwen3_next.targets, recurrent=qwen3_5_text.targets.recurrent),
    example={
        **qwen3_next.example,
        "model_type": "qwen3_5_moe_text",
        "architectures": ["Qwen3_5MoeForCausalLM"],
    },
    source="transformers, models/qwen3_5_moe/modeling_qwen3_5_moe.py",
)
qwen4_exp_text = Architecture(
    name="qwen4_exp_text",
    model_types=("qwen4_exp_text",),
    class_names=("Qwen4ExpForCausalLM",),
    targets=LoraTargets(
        attention=ATTENTION,
        mlp=(
            *MLP,
            "attn_hyper_connection.input_mix_weight_down",
            "attn_hyper_connection.input_mix_weight_up",
            "block_inject_weight",
            "mlp_hyper_connection.input_mix_weight_down",
            "mlp_hyper_connection.input_mix_weight_up",
        ),
        recurrent=("key_proj", "value_proj", *qwen3_5_text.targets.recurrent),
        experts=qwen3_next.targets.experts,
        never={
            **ROUTERS,
            "indexer.index_qk_proj": "chooses tokens by a top-k, through which no gradient comes",
        },
    ),
    example={
        **SIZES,
        "model_type": "qwen4_exp_text",
        "architectures": ["Qwen4ExpForCausalLM"],
        "eos_token_id": 2,
        "hc_lowrank": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 16,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 4,
        "layer_types": ["linear_attention", "indexed_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "moe_intermediate_size": 64,
        "ngram_vocab_size_base": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "ple_layer_ids": [1],
    },
    source="transformers, models/qwen4_exp/modeling_qwen4_exp.py",
)


def that_sees(text: Architecture) -> Architecture:
    """The type with a vision tower, whose causal class is the text model alone."""
    name = text.name.removesuffix("_text")
    inner = {key: value for key, value in text.example.items() if key != "architectures"}
    return replace(
        text,
        name=name,
        model_types=(name,),
        supersedes=(text.name,),
        example={
            "model_type": name,
            "architectures": list(text.class_names),
            "text_config": inner,
        },
    )


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Qwen3-Next and later."""
    texts = (qwen3_5_text, qwen3_5_moe_text, qwen4_exp_text)
    return [qwen3_next, *texts, *map(that_sees, texts)]
