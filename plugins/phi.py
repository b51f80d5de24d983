"""Phi 1 to 2, and the fused layers of Phi 3 to 4."""

from dataclasses import replace

from qlora_core import (
    PLAIN_PROMPT,
    Architecture,
    Layout,
    LoraTargets,
    PromptFormat,
    TokenizerPolicy,
    hookimpl,
)

phi = Architecture(
    name="phi",
    model_types=("phi",),
    class_names=("PhiForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "self_attn.dense"), mlp=("mlp.fc1", "mlp.fc2")
    ),
    layout=Layout(final_norm="model.final_layernorm"),
    # The model card's own: Phi 2 is a base model that has seen it as plain text.
    prompt=PromptFormat(
        name="phi",
        start="",
        system="{content}\n\n",
        user="Instruct: {content}\n",
        assistant="Output:\n{content}{eos}\n",
    ),
    tokenizer=TokenizerPolicy(pad=("<|endoftext|>",)),  # its only special token
    example={
        "model_type": "phi",
        "architectures": ["PhiForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
    source="transformers, models/phi/modeling_phi.py; the Phi-2 model card",
)
phi3 = Architecture(
    name="phi3",
    model_types=("phi3",),
    class_names=("Phi3ForCausalLM",),
    # Query, key and value are one layer, gate and up another: adapters of the split names
    # that some servers expect do not fit.
    targets=LoraTargets(attention=("qkv_proj", "o_proj"), mlp=("gate_up_proj", "down_proj")),
    # Every published checkpoint has a chat template, and those of 3 and 4 differ.
    prompt=replace(PLAIN_PROMPT, start=""),
    tokenizer=TokenizerPolicy(
        pad=("<|dummy_85|>", "<|placeholder6|>", "<|endoftext|>"),
        turn_end="<|end|>",  # of 3 and 4-mini; 4 ends turns with its EOS token <|im_end|>
        stop=("<|endoftext|>",),
    ),
    example={**phi.example, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    | {"num_key_value_heads": 2, "pad_token_id": 0},
    source="transformers, models/phi3/modeling_phi3.py; Abdin et al. 2024 (arXiv:2404.14219)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Phi up to 2, and Phi 3 to 4."""
    return [phi, phi3]
