"""The Parrot family: facts for qlora-core. Importing this loads no torch."""

from qlora_core import Architecture, Layout, LoraTargets, PromptFormat, TokenizerPolicy, hookimpl


def register() -> None:
    """Make Parrot's classes known to transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from qlora_core_parrot.modeling import ParrotConfig, ParrotForCausalLM

    AutoConfig.register("parrot", ParrotConfig, exist_ok=True)
    AutoModelForCausalLM.register(ParrotConfig, ParrotForCausalLM, exist_ok=True)


parrot = Architecture(
    name="parrot",
    model_types=("parrot",),
    class_names=("ParrotForCausalLM",),
    register_classes=register,
    targets=LoraTargets(attention=("perch.qkv", "perch.out"), mlp=("beak.open", "beak.close")),
    layout=Layout(
        layers="parrot.layers",
        final_norm="parrot.norm",
        embeddings="parrot.embeddings",
        head=("squawk",),
    ),
    prompt=PromptFormat(
        name="parrot",
        start="",
        system="System: {content}\n",
        user="You: {content}\n",
        assistant="Parrot: {content}{eos}\n",
    ),
    tokenizer=TokenizerPolicy(bos="forbidden"),
    example={
        "model_type": "parrot",
        "architectures": ["ParrotForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
    source="this package's modeling.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Parrot."""
    return [parrot]
