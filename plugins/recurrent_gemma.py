"""RecurrentGemma: gated linear recurrences, every third layer local attention."""

from qlora_core import Architecture, Layout, LoraTargets, TokenizerPolicy, hookimpl

recurrent_gemma = Architecture(
    name="recurrent_gemma",
    model_types=("recurrent_gemma",),
    class_names=("RecurrentGemmaForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        recurrent=("linear_y", "linear_x", "linear_out"),
    ),
    layout=Layout(
        final_norm="model.final_norm",
    ),
    tokenizer=TokenizerPolicy(
        pad=("<pad>",),
        bos="required",
        turn_end="<end_of_turn>",
    ),
    example={
        "model_type": "recurrent_gemma",
        "architectures": ["RecurrentGemmaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 512,
    },
    source="transformers, models/recurrent_gemma/modeling_recurrent_gemma.py; Botev et al. "
    "2024 (arXiv:2404.07839)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide RecurrentGemma."""
    return [recurrent_gemma]
