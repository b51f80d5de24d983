"""DBRX: fused queries, keys and values, and experts in flat matrices."""

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

dbrx = Architecture(
    name="dbrx",
    model_types=("dbrx",),
    class_names=("DbrxForCausalLM",),
    targets=LoraTargets(
        attention=("Wqkv", "out_proj"),
        experts=("mlp.w1", "mlp.v1", "mlp.w2"),
        never={
            "router.layer": "a router: adapting it unbalances the experts",
        },
    ),
    layout=Layout(
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        embeddings="transformer.wte",
    ),
    tokenizer=TokenizerPolicy(
        pad=("<|pad|>",),
        turn_end="<|im_end|>",
    ),
    example={
        "model_type": "dbrx",
        "architectures": ["DbrxForCausalLM"],
        "attn_config": {"clip_qkv": 8, "rope_theta": 10000.0},
        "d_model": 64,
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 64},
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/dbrx/modeling_dbrx.py; Databricks 2024",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide DBRX."""
    return [dbrx]
