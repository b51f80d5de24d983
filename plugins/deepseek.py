"""DeepSeek V2 to V3.2: latent attention, experts, and a sparse indexer."""

from collections.abc import Mapping
from typing import Any

from qlora_core import Architecture, LoraTargets, TokenizerPolicy, hookimpl

deepseek = Architecture(
    name="deepseek",
    model_types=("deepseek_v3", "deepseek_v2", "kimi_k2"),
    class_names=("DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM"),
    targets=LoraTargets(
        attention=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts=dict.fromkeys(
            ("deepseek_v3", "deepseek_v2"), ("gate_proj", "up_proj", "down_proj")
        ),
    ),
    tokenizer=TokenizerPolicy(
        pad=("<｜▁pad▁｜>", "<｜end▁of▁sentence｜>"),
    ),
    example={
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "first_k_dense_replace": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "moe_intermediate_size": 64,
        "n_group": 2,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "topk_group": 1,
        "vocab_size": 512,
        "n_shared_experts": 1,
    },
    source="transformers, models/deepseek_v3, deepseek_v2; DeepSeek-AI 2024 (arXiv:2405.04434, "
    "arXiv:2412.19437)",
)


def plain_queries(config: Mapping[str, Any]) -> bool:
    """Queries have one layer, q_proj (q_lora_rank is null), as in V2-Lite."""
    return config.get("q_lora_rank", 0) is None


deepseek_plain_queries = Architecture(
    name="deepseek_plain_queries",
    model_types=("deepseek_v3", "deepseek_v2", "kimi_k2"),
    where=plain_queries,
    targets=LoraTargets(
        attention=("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
        },
        taken_for_experts=dict.fromkeys(
            ("deepseek_v3", "deepseek_v2"), ("gate_proj", "up_proj", "down_proj")
        ),
    ),
    tokenizer=deepseek.tokenizer,
    example={
        **deepseek.example,
        "q_lora_rank": None,
    },
    source="transformers, models/deepseek_v3, deepseek_v2; DeepSeek-AI 2024 (arXiv:2405.04434)",
)
deepseek_v32 = Architecture(
    name="deepseek_v32",
    model_types=("deepseek_v32",),
    class_names=("DeepseekV32ForCausalLM",),
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
        taken_for_experts={"deepseek_v32": ("gate_proj", "up_proj", "down_proj")},
    ),
    tokenizer=deepseek.tokenizer,
    example={
        "model_type": "deepseek_v32",
        "architectures": ["DeepseekV32ForCausalLM"],
        "first_k_dense_replace": 1,
        "hidden_size": 64,
        "index_head_dim": 16,
        "index_n_heads": 4,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "moe_intermediate_size": 64,
        "n_group": 2,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "topk_group": 1,
        "vocab_size": 512,
    },
    source="transformers, models/deepseek_v32/modeling_deepseek_v32.py; DeepSeek-AI 2025",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide DeepSeek V2 to V3.2."""
    return [deepseek, deepseek_plain_queries, deepseek_v32]
