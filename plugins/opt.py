"""OPT, XGLM and BioGPT: a two-layer MLP beside split attention."""

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

opt = Architecture(
    name="opt",
    model_types=("opt",),
    class_names=("OPTForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp=("fc1", "fc2"),
    ),
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        embeddings="model.decoder.embed_tokens",
    ),
    tokenizer=TokenizerPolicy(
        pad=("<pad>",),
    ),
    example={
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "ffn_dim": 128,
        "hidden_size": 64,
        "max_position_embeddings": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/opt/modeling_opt.py; Zhang et al. 2022 (arXiv:2205.01068)",
)
xglm = Architecture(
    name="xglm",
    model_types=("xglm",),
    class_names=("XGLMForCausalLM",),
    targets=opt.targets,
    layout=Layout(
        final_norm="model.layer_norm",
    ),
    tokenizer=opt.tokenizer,
    example={
        "model_type": "xglm",
        "architectures": ["XGLMForCausalLM"],
        "d_model": 64,
        "ffn_dim": 128,
        "max_position_embeddings": 256,
        "num_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xglm/modeling_xglm.py; Lin et al. 2021 (arXiv:2112.10668)",
)
biogpt = Architecture(
    name="biogpt",
    model_types=("biogpt",),
    class_names=("BioGptForCausalLM",),
    targets=opt.targets,
    layout=Layout(
        layers="biogpt.layers",
        final_norm="biogpt.layer_norm",
        embeddings="biogpt.embed_tokens",
        head=("output_projection",),
    ),
    example={
        "model_type": "biogpt",
        "architectures": ["BioGptForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/biogpt/modeling_biogpt.py; Luo et al. 2022 (arXiv:2210.10341)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide OPT, XGLM and BioGPT."""
    return [opt, xglm, biogpt]
