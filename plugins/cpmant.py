"""CPM-Ant."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

cpmant = Architecture(
    name="cpmant",
    model_types=("cpmant",),
    class_names=("CpmAntForCausalLM",),
    targets=LoraTargets(
        attention=("project_q", "project_k", "project_v", "attention_out"),
        mlp=("w_0", "w_1", "w_out"),
    ),
    layout=Layout(
        layers="cpmant.encoder.layers",
        final_norm="cpmant.encoder.output_layernorm",
        embeddings="cpmant.input_embedding",
    ),
    example={
        "model_type": "cpmant",
        "architectures": ["CpmAntForCausalLM"],
        "dim_ff": 128,
        "dim_head": 16,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/cpmant/modeling_cpmant.py; OpenBMB 2022",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide CPM-Ant."""
    return [cpmant]
