"""StarCoder 2."""

from dataclasses import replace

from qlora_core import PLAIN_PROMPT, Architecture, LoraTargets, TokenizerPolicy, hookimpl

starcoder2 = Architecture(
    name="starcoder2",
    model_types=("starcoder2",),
    class_names=("Starcoder2ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("c_fc", "c_proj"),
    ),
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|endoftext|>",),
    ),
    example={
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    source="transformers, models/starcoder2/modeling_starcoder2.py; Lozhkov et al. 2024 "
    "(arXiv:2402.19173)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide StarCoder 2."""
    return [starcoder2]
