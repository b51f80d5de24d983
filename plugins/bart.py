"""Decoders of BART and its kin, without their encoders."""

from dataclasses import replace

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

bart = Architecture(
    name="bart",
    model_types=("bart", "bigbird_pegasus", "blenderbot-small", "mvp", "plbart"),
    class_names=(
        "BartForCausalLM",
        "BigBirdPegasusForCausalLM",
        "BlenderbotSmallForCausalLM",
        "MvpForCausalLM",
        "PLBartForCausalLM",
    ),
    targets=LoraTargets(
        attention=(
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
        ),
        mlp=("fc1", "fc2"),
        never={
            "encoder_attn.k_proj": "cross-attention: here it has nothing to attend to",
            "encoder_attn.v_proj": "cross-attention: here it has nothing to attend to",
            "encoder_attn.q_proj": "cross-attention: here it has nothing to attend to",
            "encoder_attn.out_proj": "cross-attention: here it has nothing to attend to",
        },
    ),
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.layernorm_embedding",
        embeddings="model.decoder.embed_tokens",
    ),
    example={
        "model_type": "bart",
        "architectures": ["BartForCausalLM"],
        "d_model": 64,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "decoder_attention_heads": 4,
    },
    source="transformers, models/bart, bigbird_pegasus, blenderbot_small, mvp, plbart; Lewis "
    "et al. 2019 (arXiv:1910.13461)",
)
mbart = Architecture(
    name="mbart",
    model_types=("mbart", "blenderbot", "pegasus"),
    class_names=("MBartForCausalLM", "BlenderbotForCausalLM", "PegasusForCausalLM"),
    targets=bart.targets,
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.layer_norm",
        embeddings="model.decoder.embed_tokens",
    ),
    example={
        "model_type": "mbart",
        "architectures": ["MBartForCausalLM"],
        "d_model": 64,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/mbart, blenderbot, pegasus; Liu et al. 2020 (arXiv:2001.08210)",
)
marian = Architecture(
    name="marian",
    model_types=("marian",),
    class_names=("MarianForCausalLM",),
    targets=bart.targets,
    layout=Layout(
        layers="model.decoder.layers",
        embeddings="model.decoder.embed_tokens",
    ),
    example={
        "model_type": "marian",
        "architectures": ["MarianForCausalLM"],
        "d_model": 64,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/marian/modeling_marian.py; Junczys-Dowmunt et al. 2018 "
    "(arXiv:1804.00344)",
)
trocr = Architecture(
    name="trocr",
    model_types=("trocr",),
    class_names=("TrOCRForCausalLM",),
    targets=bart.targets,
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.layernorm_embedding",
        embeddings="model.decoder.embed_tokens",
        head=("output_projection",),
    ),
    example={
        "model_type": "trocr",
        "architectures": ["TrOCRForCausalLM"],
        "d_model": 64,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/trocr/modeling_trocr.py; Li et al. 2021 (arXiv:2109.10282)",
)
whisper = Architecture(
    name="whisper",
    model_types=("whisper",),
    class_names=("WhisperForCausalLM",),
    targets=bart.targets,
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.layer_norm",
        embeddings="model.decoder.embed_tokens",
        head=("proj_out",),
    ),
    example={
        "model_type": "whisper",
        "architectures": ["WhisperForCausalLM"],
        "d_model": 64,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 512,
    },
    source="transformers, models/whisper/modeling_whisper.py; Radford et al. 2022 "
    "(arXiv:2212.04356)",
)
prophetnet = Architecture(
    name="prophetnet",
    model_types=("prophetnet",),
    class_names=("ProphetNetForCausalLM",),
    targets=LoraTargets(
        attention=(
            "self_attn.query_proj",
            "self_attn.key_proj",
            "self_attn.value_proj",
            "self_attn.out_proj",
            "relative_pos_embeddings",
        ),
        mlp=("intermediate", "output"),
        never={
            "cross_attn.key_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.value_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.query_proj": "cross-attention: here it has nothing to attend to",
            "cross_attn.out_proj": "cross-attention: here it has nothing to attend to",
        },
    ),
    layout=Layout(
        layers="prophetnet.decoder.layers",
        final_norm="prophetnet.decoder.embeddings_layer_norm",
        embeddings="prophetnet.decoder.word_embeddings",
    ),
    example={
        "model_type": "prophetnet",
        "architectures": ["ProphetNetForCausalLM"],
        "decoder_ffn_dim": 128,
        "hidden_size": 64,
        "num_decoder_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/prophetnet/modeling_prophetnet.py; Qi et al. 2020 "
    "(arXiv:2001.04063)",
)

musicgen = Architecture(
    name="musicgen",
    since="5.23",
    model_types=("musicgen",),
    class_names=("MusicgenForCausalLM",),
    targets=bart.targets,
    layout=Layout(
        layers="model.decoder.layers",
        final_norm="model.decoder.layer_norm",
        embeddings="model.decoder.embed_tokens",
        head=("lm_heads",),
    ),
    example={
        "model_type": "musicgen",
        "architectures": ["MusicgenForCausalLM"],
        "decoder": {
            "model_type": "musicgen_decoder",
            "ffn_dim": 128,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 512,
        },
        "text_encoder": {"model_type": "t5"},
        "audio_encoder": {"model_type": "encodec"},
    },
    source="transformers, models/musicgen/modeling_musicgen.py; Copet et al. 2023 "
    "(arXiv:2306.05284)",
)
musicgen_melody = replace(
    musicgen,
    name="musicgen_melody",
    model_types=("musicgen_melody",),
    class_names=("MusicgenMelodyForCausalLM",),
    targets=replace(bart.targets, never={}),
    example={
        **musicgen.example,
        "model_type": "musicgen_melody",
        "architectures": ["MusicgenMelodyForCausalLM"],
        "decoder": {**musicgen.example["decoder"], "model_type": "musicgen_melody_decoder"},
    },
    source="transformers, models/musicgen_melody/modeling_musicgen_melody.py; Copet et al. 2023 "
    "(arXiv:2306.05284)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide Decoders of BART and its kin, without their encoders."""
    return [bart, mbart, marian, trocr, whisper, prophetnet, musicgen, musicgen_melody]
