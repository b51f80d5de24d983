"""Llama-like families whose classes come with their checkpoints: names from published code."""

from dataclasses import replace

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

ROUTER = "the router: adapting it unbalances the experts"
MLP = ("gate_proj", "up_proj", "down_proj")

baichuan = Architecture(
    name="baichuan",
    model_types=("baichuan",),
    class_names=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    targets=LoraTargets(attention=("W_pack", "o_proj"), mlp=MLP),
    example={
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    },
    source="the checkpoints' modeling_baichuan.py; Yang et al. 2023 (arXiv:2309.10305)",
)
internlm2 = Architecture(
    name="internlm2",
    model_types=("internlm2",),
    class_names=("InternLM2ForCausalLM",),
    targets=LoraTargets(
        attention=("attention.wqkv", "attention.wo"),
        mlp=("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
    layout=Layout(embeddings="model.tok_embeddings", head=("output",)),
    tokenizer=TokenizerPolicy(turn_end="<|im_end|>"),
    example={
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    },
    source="the checkpoints' modeling_internlm2.py; Cai et al. 2024 (arXiv:2403.17297)",
)
deepseek_v1 = Architecture(
    name="deepseek_v1",
    model_types=("deepseek",),
    class_names=("DeepseekForCausalLM",),
    # Its routed experts are linear layers: `mlp.experts.0.up_proj` is not meant here.
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=tuple(f"{block}.{name}" for block in ("mlp", "shared_experts") for name in MLP),
        never={"mlp.gate": ROUTER},
    ),
    tokenizer=TokenizerPolicy(pad=("<｜end▁of▁sentence｜>",)),
    example={
        "model_type": "deepseek",
        "architectures": ["DeepseekForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
    },
    source="the checkpoints' modeling_deepseek.py; Dai et al. 2024 (arXiv:2401.06066)",
)
grin_moe = Architecture(
    name="grin_moe",
    model_types=("grinmoe",),
    class_names=("GRINMoEForCausalLM",),
    targets=replace(deepseek_v1.targets, mlp=(), never={"block_sparse_moe.gate": ROUTER}),
    example={
        "model_type": "grinmoe",
        "architectures": ["GRINMoEForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_grinmoe.GRINMoEForCausalLM"},
    },
    source="the checkpoint's modeling_grinmoe.py; Liu et al. 2024 (arXiv:2409.12136)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Baichuan, InternLM 2, the first DeepSeek MoE and GRIN MoE."""
    return [baichuan, internlm2, deepseek_v1, grin_moe]
