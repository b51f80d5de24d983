"""xLSTM: matrix memories with exponential gates."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

xlstm = Architecture(
    name="xlstm",
    model_types=("xlstm",),
    class_names=("xLSTMForCausalLM",),
    targets=LoraTargets(
        attention=("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact", "out_proj"),
        mlp=("proj_up_gate", "proj_up", "proj_down"),
    ),
    layout=Layout(
        layers="backbone.blocks",
        final_norm="backbone.out_norm",
        embeddings="backbone.embeddings",
    ),
    example={
        "model_type": "xlstm",
        "architectures": ["xLSTMForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xlstm/modeling_xlstm.py; Beck et al. 2024 (arXiv:2405.04517)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide xLSTM."""
    return [xlstm]
