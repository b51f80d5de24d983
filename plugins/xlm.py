"""XLM and XLNet, permuted and multilingual language models of 2019."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

xlm = Architecture(
    name="xlm",
    model_types=("xlm",),
    class_names=("XLMWithLMHeadModel",),
    targets=LoraTargets(
        attention=("q_lin", "k_lin", "v_lin", "out_lin"),
        mlp=("lin1", "lin2"),
    ),
    layout=Layout(
        layers="transformer.ffns",
        final_norm="transformer.layer_norm_emb",
        embeddings="transformer.embeddings",
        head=("pred_layer.proj",),
    ),
    example={
        "model_type": "xlm",
        "architectures": ["XLMWithLMHeadModel"],
        "emb_dim": 64,
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xlm/modeling_xlm.py; Lample and Conneau 2019 (arXiv:1901.07291)",
)
xlnet = Architecture(
    name="xlnet",
    model_types=("xlnet",),
    class_names=("XLNetLMHeadModel",),
    targets=LoraTargets(
        mlp=("layer_1", "layer_2"),
        dequantize_on_access=tuple(f"rel_attn.{name}" for name in "qkvor"),
    ),
    layout=Layout(
        layers="transformer.layer",
        embeddings="transformer.word_embedding",
        head=("lm_loss",),
    ),
    example={
        "model_type": "xlnet",
        "architectures": ["XLNetLMHeadModel"],
        "d_inner": 128,
        "d_model": 64,
        "n_head": 4,
        "n_layer": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xlnet/modeling_xlnet.py; Yang et al. 2019 (arXiv:1906.08237)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide XLM and XLNet, permuted and multilingual language models of 2019."""
    return [xlm, xlnet]
