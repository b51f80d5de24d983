"""ModernBERT as a decoder."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

modernbert_decoder = Architecture(
    name="modernbert_decoder",
    model_types=("modernbert-decoder",),
    class_names=("ModernBertDecoderForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "attn.Wo"),
        mlp=("Wi", "mlp.Wo"),
    ),
    layout=Layout(
        final_norm="model.final_norm",
        embeddings="model.embeddings.tok_embeddings",
        head=("decoder",),
    ),
    example={
        "model_type": "modernbert-decoder",
        "architectures": ["ModernBertDecoderForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/modernbert_decoder/modeling_modernbert_decoder.py; Warner et "
    "al. 2024 (arXiv:2412.13663)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide ModernBERT as a decoder."""
    return [modernbert_decoder]
