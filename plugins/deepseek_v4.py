"""DeepSeek V4: compressed attention beside a sparse indexer."""

from qlora_core import Architecture, LoraTargets, hookimpl

SHORT_TEXTS = (
    "in heavily compressed layers it takes part only in texts of a whole window (128 tokens): "
    "a run over shorter ones would have adapters that never learn"
)
deepseek_v4 = Architecture(
    name="deepseek_v4",
    model_types=("deepseek_v4",),
    class_names=("DeepseekV4ForCausalLM",),
    targets=LoraTargets(
        attention=("q_a_proj", "self_attn.q_b_proj", "self_attn.kv_proj", "o_b_proj"),
        mlp=("shared_experts.gate_proj", "up_proj", "down_proj"),
        experts=("experts.gate_up_proj", "experts.down_proj"),
        never={
            "mlp.gate": "a router: adapting it unbalances the experts",
            "indexer.kv_proj": "chooses tokens by a top-k, through which no gradient comes",
            "indexer.gate_proj": "chooses tokens by a top-k, through which no gradient comes",
            "indexer.q_b_proj": "chooses tokens by a top-k, through which no gradient comes",
            "scorer.weights_proj": "chooses tokens by a top-k, through which no gradient comes",
            "self_attn.o_a_proj": "a grouped map, whose output is not that of a linear layer",
            "compressor.kv_proj": SHORT_TEXTS,
            "compressor.gate_proj": SHORT_TEXTS,
        },
    ),
    example={
        "model_type": "deepseek_v4",
        "architectures": ["DeepseekV4ForCausalLM"],
        "head_dim": 16,
        "hidden_size": 64,
        "index_head_dim": 16,
        "layer_types": [
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "o_lora_rank": 32,
        "q_lora_rank": 32,
        "vocab_size": 512,
    },
    source="transformers, models/deepseek_v4/modeling_deepseek_v4.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide DeepSeek V4."""
    return [deepseek_v4]
