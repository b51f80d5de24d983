"""Models that see or hear, whose text model is another family's."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

emu3 = Architecture(
    name="emu3",
    model_types=("emu3",),
    class_names=("Emu3ForCausalLM",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
    ),
    example={
        "model_type": "emu3",
        "architectures": ["Emu3ForCausalLM"],
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "emu3_text_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "vocab_size": 512,
        },
    },
    source="transformers, models/emu3/modeling_emu3.py; Wang et al. 2024 (arXiv:2409.18869)",
)
got_ocr2 = Architecture(
    name="got_ocr2",
    model_types=("got_ocr2",),
    class_names=("GotOcr2ForConditionalGeneration",),
    supersedes=("qwen",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        outside=("vision_tower", "multi_modal_projector"),
    ),
    layout=Layout(
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        embeddings="model.language_model.embed_tokens",
    ),
    example={
        "model_type": "got_ocr2",
        "architectures": ["GotOcr2ForConditionalGeneration"],
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "vocab_size": 512,
        },
        "vision_config": {
            "hidden_size": 64,
            "model_type": "got_ocr2_vision",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
    },
    source="transformers, models/got_ocr2/modeling_got_ocr2.py; Wei et al. 2024 (arXiv:2409.01704)",
)
moss_transcribe_diarize = Architecture(
    name="moss_transcribe_diarize",
    model_types=("moss_transcribe_diarize",),
    class_names=("MossTranscribeDiarizeForConditionalGeneration",),
    supersedes=("qwen",),
    targets=LoraTargets(
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        outside=("audio_tower", "multi_modal_projector"),
    ),
    layout=got_ocr2.layout,
    example={
        "model_type": "moss_transcribe_diarize",
        "architectures": ["MossTranscribeDiarizeForConditionalGeneration"],
        "audio_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "moss_transcribe_diarize_audio",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
        "text_config": {
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "vocab_size": 512,
        },
    },
    source="transformers, models/moss_transcribe_diarize/modeling_moss_transcribe_diarize.py",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Models that see or hear, whose text model is another family's."""
    return [emu3, got_ocr2, moss_transcribe_diarize]
