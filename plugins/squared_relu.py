"""Dense decoders without a gate: an up and a down projection around an activation."""

from qlora_core import Architecture, LoraTargets, hookimpl

ungated = Architecture(
    name="ungated",
    model_types=("nemotron", "apertus", "arcee", "jais2"),
    class_names=(
        "NemotronForCausalLM",
        "ApertusForCausalLM",
        "ArceeForCausalLM",
        "Jais2ForCausalLM",
    ),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("up_proj", "down_proj"),
    ),
    example={
        "model_type": "nemotron",
        "architectures": ["NemotronForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/nemotron, apertus, arcee, jais2; Parmar et al. 2024 "
    "(arXiv:2402.16819), Hernandez-Cano et al. 2025 (arXiv:2509.14233)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Dense decoders without a gate."""
    return [ungated]
