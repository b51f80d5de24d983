"""BERT and its kin as decoders (is_decoder)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_core import Architecture, Layout, LoraTargets, hookimpl

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}


def layout(prefix: str, head: str, final_norm: str = Layout().final_norm) -> Layout:
    """Where the parts lie; ``prefix`` is the name of the model below its head."""
    return Layout(
        layers=f"{prefix}.encoder.layer",
        final_norm=final_norm,
        embeddings=f"{prefix}.embeddings.word_embeddings",
        head=(head,),
    )


bert = Architecture(
    name="bert",
    model_types=("bert", "big_bird"),
    class_names=("BertLMHeadModel", "BigBirdForCausalLM"),
    targets=LoraTargets(
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
    ),
    layout=layout("bert", "cls.predictions.decoder"),
    example={
        **SIZES,
        "model_type": "bert",
        "architectures": ["BertLMHeadModel"],
        "max_position_embeddings": 256,
    },
    source="transformers, models/bert, big_bird; Devlin et al. 2018 (arXiv:1810.04805)",
)


def looks_at_an_encoder(config: Mapping[str, Any]) -> bool:
    """Every layer has cross-attention too (add_cross_attention)."""
    return bool(config.get("add_cross_attention"))


bert_cross_attention = replace(
    bert,
    name="bert_cross_attention",
    class_names=(),
    where=looks_at_an_encoder,
    targets=replace(
        bert.targets,
        never={"crossattention": "cross-attention: here it has nothing to attend to"},
        outside=("crossattention",),
    ),
    example={**bert.example, "is_decoder": True, "add_cross_attention": True},
)


def kin(
    kind: str, class_name: str, source: str, *, targets: LoraTargets = bert.targets, **parts: str
) -> Architecture:
    """A family of one type whose layers bear BERT's names."""
    return Architecture(
        name=kind.replace("-", "_"),
        model_types=(kind,),
        class_names=(class_name,),
        targets=targets,
        layout=layout(**{"head": "lm_head.decoder", **parts}),
        example={**SIZES, "model_type": kind, "architectures": [class_name]},
        source=f"transformers, models/{source}",
    )


roberta = replace(
    kin(
        "roberta",
        "RobertaForCausalLM",
        "roberta, camembert, xlm_roberta; Liu et al. 2019 (arXiv:1907.11692)",
        prefix="roberta",
    ),
    model_types=("roberta", "camembert", "xlm-roberta"),
    class_names=("RobertaForCausalLM", "CamembertForCausalLM", "XLMRobertaForCausalLM"),
)
FAMILIES = [
    bert,
    bert_cross_attention,
    kin(
        "bert-generation",
        "BertGenerationDecoder",
        "bert_generation/modeling_bert_generation.py; Rothe et al. 2019 (arXiv:1907.12461)",
        prefix="bert",
    ),
    roberta,
    kin(
        "megatron-bert",
        "MegatronBertForCausalLM",
        "megatron_bert/modeling_megatron_bert.py; Shoeybi et al. 2019 (arXiv:1909.08053)",
        prefix="bert",
        final_norm="bert.encoder.ln",
        head="cls.predictions.decoder",
    ),
    kin(
        "xlm-roberta-xl",
        "XLMRobertaXLForCausalLM",
        "xlm_roberta_xl/modeling_xlm_roberta_xl.py; Goyal et al. 2021 (arXiv:2105.00572)",
        prefix="roberta",
        final_norm="roberta.encoder.LayerNorm",
    ),
    kin(
        "roberta-prelayernorm",
        "RobertaPreLayerNormForCausalLM",
        "roberta_prelayernorm/modeling_roberta_prelayernorm.py; Ott et al. 2019 (arXiv:1904.01038)",
        prefix="roberta_prelayernorm",
    ),
    kin(
        "data2vec-text",
        "Data2VecTextForCausalLM",
        "data2vec/modeling_data2vec_text.py; Baevski et al. 2022 (arXiv:2202.03555)",
        prefix="data2vec_text",
    ),
    replace(
        kin(
            "xmod",
            "XmodForCausalLM",
            "xmod/modeling_xmod.py; Pfeiffer et al. 2022 (arXiv:2205.06266)",
            targets=replace(bert.targets, mlp=(*bert.targets.mlp, "dense1", "dense2")),
            prefix="roberta",
        ),
        example={
            **SIZES,
            "model_type": "xmod",
            "architectures": ["XmodForCausalLM"],
            "default_language": "en_XX",
        },
    ),
]


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide BERT and its kin as decoders (is_decoder)."""
    return FAMILIES
