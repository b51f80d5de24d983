"""BERT and its kin as decoders (is_decoder)."""

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

bert = Architecture(
    name="bert",
    model_types=("bert", "big_bird"),
    class_names=("BertLMHeadModel", "BigBirdForCausalLM"),
    targets=LoraTargets(
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
    ),
    layout=Layout(
        layers="bert.encoder.layer",
        embeddings="bert.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        "model_type": "bert",
        "architectures": ["BertLMHeadModel"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
    },
    source="transformers, models/bert, big_bird; Devlin et al. 2018 (arXiv:1810.04805)",
)
bert_generation = Architecture(
    name="bert_generation",
    model_types=("bert-generation",),
    class_names=("BertGenerationDecoder",),
    targets=bert.targets,
    layout=Layout(
        layers="bert.encoder.layer",
        embeddings="bert.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "bert-generation",
        "architectures": ["BertGenerationDecoder"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/bert_generation/modeling_bert_generation.py; Rothe et al. "
    "2019 (arXiv:1907.12461)",
)
roberta = Architecture(
    name="roberta",
    model_types=("roberta", "camembert", "xlm-roberta"),
    class_names=("RobertaForCausalLM", "CamembertForCausalLM", "XLMRobertaForCausalLM"),
    targets=bert.targets,
    layout=Layout(
        layers="roberta.encoder.layer",
        embeddings="roberta.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "roberta",
        "architectures": ["RobertaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/roberta, camembert, xlm_roberta; Liu et al. 2019 "
    "(arXiv:1907.11692)",
)
megatron_bert = Architecture(
    name="megatron_bert",
    model_types=("megatron-bert",),
    class_names=("MegatronBertForCausalLM",),
    targets=bert.targets,
    layout=Layout(
        layers="bert.encoder.layer",
        final_norm="bert.encoder.ln",
        embeddings="bert.embeddings.word_embeddings",
        head=("cls.predictions.decoder",),
    ),
    example={
        "model_type": "megatron-bert",
        "architectures": ["MegatronBertForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/megatron_bert/modeling_megatron_bert.py; Shoeybi et al. 2019 "
    "(arXiv:1909.08053)",
)
xlm_roberta_xl = Architecture(
    name="xlm_roberta_xl",
    model_types=("xlm-roberta-xl",),
    class_names=("XLMRobertaXLForCausalLM",),
    targets=bert.targets,
    layout=Layout(
        layers="roberta.encoder.layer",
        final_norm="roberta.encoder.LayerNorm",
        embeddings="roberta.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "xlm-roberta-xl",
        "architectures": ["XLMRobertaXLForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xlm_roberta_xl/modeling_xlm_roberta_xl.py; Goyal et al. 2021 "
    "(arXiv:2105.00572)",
)
roberta_prelayernorm = Architecture(
    name="roberta_prelayernorm",
    model_types=("roberta-prelayernorm",),
    class_names=("RobertaPreLayerNormForCausalLM",),
    targets=bert.targets,
    layout=Layout(
        layers="roberta_prelayernorm.encoder.layer",
        embeddings="roberta_prelayernorm.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "roberta-prelayernorm",
        "architectures": ["RobertaPreLayerNormForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/roberta_prelayernorm/modeling_roberta_prelayernorm.py; Ott et "
    "al. 2019 (arXiv:1904.01038)",
)
data2vec_text = Architecture(
    name="data2vec_text",
    model_types=("data2vec-text",),
    class_names=("Data2VecTextForCausalLM",),
    targets=bert.targets,
    layout=Layout(
        layers="data2vec_text.encoder.layer",
        embeddings="data2vec_text.embeddings.word_embeddings",
        head=("lm_head.decoder",),
    ),
    example={
        "model_type": "data2vec-text",
        "architectures": ["Data2VecTextForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/data2vec/modeling_data2vec_text.py; Baevski et al. 2022 "
    "(arXiv:2202.03555)",
)
xmod = Architecture(
    name="xmod",
    model_types=("xmod",),
    class_names=("XmodForCausalLM",),
    targets=LoraTargets(
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense", "dense1", "dense2"),
    ),
    layout=roberta.layout,
    example={
        "model_type": "xmod",
        "architectures": ["XmodForCausalLM"],
        "default_language": "en_XX",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 512,
    },
    source="transformers, models/xmod/modeling_xmod.py; Pfeiffer et al. 2022 (arXiv:2205.06266)",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide BERT and its kin as decoders (is_decoder)."""
    return [
        bert,
        bert_generation,
        roberta,
        megatron_bert,
        xlm_roberta_xl,
        roberta_prelayernorm,
        data2vec_text,
        xmod,
    ]
