"""More encoders of BERT's kind that transformers can run as decoders."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

electra = Architecture(
    name="electra",
    model_types=("electra",),
    class_names=("ElectraForCausalLM",),
    targets=LoraTargets(
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
    ),
    layout=Layout(
        layers="electra.encoder.layer",
        embeddings="electra.embeddings.word_embeddings",
        head=("generator_lm_head",),
    ),
    example={
        "model_type": "electra",
        "architectures": ["ElectraForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/electra/modeling_electra.py; Clark et al. 2020 (arXiv:2003.10555)",
)
ernie = Architecture(
    name="ernie",
    model_types=("ernie",),
    class_names=("ErnieForCausalLM",),
    targets=electra.targets,
    layout=Layout(
        layers="ernie.encoder.layer",
        embeddings="ernie.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        **electra.example,
        "model_type": "ernie",
        "architectures": ["ErnieForCausalLM"],
    },
    source="transformers, models/ernie/modeling_ernie.py; Sun et al. 2019 (arXiv:1904.09223)",
)
rembert = Architecture(
    name="rembert",
    model_types=("rembert",),
    class_names=("RemBertForCausalLM",),
    targets=electra.targets,
    layout=Layout(
        layers="rembert.encoder.layer",
        embeddings="rembert.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        **electra.example,
        "model_type": "rembert",
        "architectures": ["RemBertForCausalLM"],
        "input_embedding_size": 64,
        "output_embedding_size": 64,
    },
    source="transformers, models/rembert/modeling_rembert.py; Chung et al. 2020 (arXiv:2010.12821)",
)
roc_bert = Architecture(
    name="roc_bert",
    model_types=("roc_bert",),
    class_names=("RoCBertForCausalLM",),
    targets=electra.targets,
    layout=Layout(
        layers="roc_bert.encoder.layer",
        embeddings="roc_bert.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        **electra.example,
        "model_type": "roc_bert",
        "architectures": ["RoCBertForCausalLM"],
        "max_position_embeddings": 256,
        "pronunciation_embed_dim": 64,
        "shape_vocab_size": 64,
    },
    source="transformers, models/roc_bert/modeling_roc_bert.py; Su et al. 2022",
)
roformer = Architecture(
    name="roformer",
    model_types=("roformer",),
    class_names=("RoFormerForCausalLM",),
    targets=electra.targets,
    layout=Layout(
        layers="roformer.encoder.layer",
        embeddings="roformer.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        **electra.example,
        "model_type": "roformer",
        "architectures": ["RoFormerForCausalLM"],
    },
    source="transformers, models/roformer/modeling_roformer.py; Su et al. 2021 (arXiv:2104.09864)",
)
git = Architecture(
    name="git",
    model_types=("git",),
    class_names=("GitForCausalLM",),
    targets=LoraTargets(
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        outside=("image_encoder",),
    ),
    layout=Layout(
        layers="git.encoder.layer",
        embeddings="git.embeddings.word_embeddings",
        head=("output",),
    ),
    example={
        **electra.example,
        "model_type": "git",
        "architectures": ["GitForCausalLM"],
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "model_type": "git_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
    },
    source="transformers, models/git/modeling_git.py; Wang et al. 2022 (arXiv:2205.14100)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide More encoders of BERT's kind that transformers can run as decoders."""
    return [electra, ernie, rembert, roc_bert, roformer, git]
