"""GLM 4 and its successors: fused gate and up in dense models, then experts."""

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

glm = Architecture(
    name="glm",
    model_types=("glm", "glm4"),
    class_names=("GlmForCausalLM", "Glm4ForCausalLM"),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_up_proj", "down_proj"),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
        stop=("<|user|>", "<|observation|>"),
    ),
    example={
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/glm, glm4; GLM Team 2024 (arXiv:2406.12793)",
)
glm4_moe = Architecture(
    name="glm4_moe",
    model_types=("glm4_moe",),
    class_names=("Glm4MoeForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"glm4_moe": ("gate_proj", "up_proj", "down_proj")},
    ),
    tokenizer=glm.tokenizer,
    example={
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/glm4_moe/modeling_glm4_moe.py; GLM Team 2025 (arXiv:2508.06471)",
)
glm4_moe_lite = Architecture(
    name="glm4_moe_lite",
    model_types=("glm4_moe_lite",),
    class_names=("Glm4MoeLiteForCausalLM",),
    targets=LoraTargets(
        attention=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts={"glm4_moe_lite": ("gate_proj", "up_proj", "down_proj")},
    ),
    tokenizer=glm.tokenizer,
    example={
        "model_type": "glm4_moe_lite",
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "v_head_dim": 16,
        "vocab_size": 512,
    },
    source="transformers, models/glm4_moe_lite/modeling_glm4_moe_lite.py",
)
glm_moe_dsa = Architecture(
    name="glm_moe_dsa",
    model_types=("glm_moe_dsa",),
    class_names=("GlmMoeDsaForCausalLM",),
    targets=LoraTargets(
        attention=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
            "indexer.wq_b": "chooses tokens by a top-k, through which no gradient comes",
            "indexer.wk": "chooses tokens by a top-k, through which no gradient comes",
            "indexer.weights_proj": "chooses tokens by a top-k, through which no gradient comes",
        },
        keep_unquantized={
            "weights_proj": "its input is cast to its weight's dtype: integers, in 4 bits",
        },
        dequantize_on_access=("weights_proj",),
        taken_for_experts={"glm_moe_dsa": ("gate_proj", "up_proj", "down_proj")},
    ),
    tokenizer=glm.tokenizer,
    example={
        "model_type": "glm_moe_dsa",
        "architectures": ["GlmMoeDsaForCausalLM"],
        "first_k_dense_replace": 1,
        "hidden_size": 64,
        "index_head_dim": 16,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "vocab_size": 512,
    },
    source="transformers, models/glm_moe_dsa/modeling_glm_moe_dsa.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide GLM 4 and its successors."""
    return [glm, glm4_moe, glm4_moe_lite, glm_moe_dsa]
