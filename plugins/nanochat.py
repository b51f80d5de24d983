"""nanochat: a two-layer MLP and attention without biases."""

from qlora_core import Architecture, LoraTargets, hookimpl

nanochat = Architecture(
    name="nanochat",
    model_types=("nanochat",),
    class_names=("NanoChatForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("fc1", "fc2"),
    ),
    example={
        "model_type": "nanochat",
        "architectures": ["NanoChatForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/nanochat/modeling_nanochat.py; Karpathy 2025",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide nanochat."""
    return [nanochat]
