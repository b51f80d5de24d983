"""Every model type, small enough to train in a second: what the suites of the sweep examine."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import installed

CAUSAL = frozenset(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The causal-LM types that the installed transformers knows."""
Config = dict[str, Any]
VARIANTS: dict[str, Config] = {
    "bamba@attention_first": {"attn_layer_indices": [0]},
    "bamba@no_attention": {"attn_layer_indices": []},
    "deepseek_v2@no_q_lora": {"q_lora_rank": None},
    "deepseek_v3@all_sparse": {"first_k_dense_replace": 0},
    "granitemoehybrid@attention_only": {"layer_types": ["full_attention"] * 2},
    "granitemoehybrid@recurrent_only": {"layer_types": ["linear_attention"] * 2},
    "jamba@attention_first": {"attn_layer_offset": 0},
    "lfm2@attention_only": {"layer_types": ["full_attention"] * 3},
    "minimax@attention_only": {"layer_types": ["full_attention"] * 2},
    "minimax@recurrent_only": {"layer_types": ["linear_attention"] * 2},
    "qwen3_5_text@recurrent_only": {"layer_types": ["linear_attention"] * 2},
    "qwen3_next@attention_only": {"layer_types": ["full_attention"] * 2},
    "recurrent_gemma@attention_only": {"block_types": ["attention"]},
    "zamba2@two_blocks": {"num_mem_blocks": 2},
}
"""Variants inside one type, made from the type's small config."""
CHANGED: dict[str, Config] = {
    "flint": {"mlp_only_layers": [0]},
    "reformer": {
        "hash_seed": 0, "hidden_dropout_prob": 0.0, "lsh_attention_probs_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
}  # fmt: skip
"""What the small configs lack: Flint's experts; Reformer's repeatability (it draws its seeds)."""
_DATA = Path(os.environ.get("QLORA_TEST_DATA", Path(__file__).resolve().parents[3] / "shared"))
_FILE = Path("architectures") / "tiny_configs.json"


@cache
def every_config() -> dict[str, Config]:
    """Name -> a small config: ``type``, ``type@variant``, or ``vlm:type`` (image and text).

    From the test data where there is any, else the examples that the families bring.
    """
    found = next((f for f in (_DATA / "data" / _FILE, _DATA / _FILE) if f.is_file()), None)
    read = json.loads(found.read_text(encoding="utf-8")) if found else {}
    named = {key: {**values, "model_type": _type(key)} for key, values in read.items()}
    named = named or dict(_examples())
    for key, changes in (*VARIANTS.items(), *CHANGED.items()):
        if _type(key) in named:
            named[key] = {**named[_type(key)], **changes}
    return {key: c for key, c in named.items() if c["model_type"] in CONFIG_MAPPING}


def text_models() -> dict[str, Config]:
    """The causal-LM types and their variants."""
    return {key: config for key, config in every_config().items() if ":" not in key}


def image_text_models() -> dict[str, Config]:
    """The types that read images and text."""
    return {key: config for key, config in every_config().items() if key.startswith("vlm:")}


def _type(key: str) -> str:
    return key.rpartition(":")[2].partition("@")[0]


def _examples() -> Iterator[tuple[str, Config]]:
    for family in installed().architectures.values():
        for kind in family.model_types:
            if kind in CAUSAL:
                yield kind, {**family.example, "model_type": kind}


def chosen(configs: Mapping[str, Any], count: int, seed: int) -> list[str]:
    """``count`` of the names, spread evenly from the ``seed``-th on: another share each day."""
    names = sorted(configs)
    step = max(len(names) // max(count, 1), 1)
    start = seed % step
    return names if count >= len(names) else names[start::step][:count]


def build(config: Config) -> Any:
    """The model with random weights, none of them zero: trained checkpoints have no zeros."""
    torch.manual_seed(0)
    model: Any = build_skeleton(config, device="cpu")
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter.data, std=0.1)
    gc.collect()
    return model


def save(config: Config, folder: Path) -> Any:
    """Save the built model as checkpoints are published: with the config of the whole."""
    model = build(config)
    model.save_pretrained(folder)
    values = {key: value for key, value in config.items() if key != "model_type"}
    AutoConfig.for_model(config["model_type"], **values).save_pretrained(folder)
    return model


def text(model: Any, *, rows: int = 2) -> torch.Tensor:
    """Random token ids (rows, tokens), the same for each model of one vocabulary and length.

    32 tokens, or a quarter more than the widest window that the model compresses: below one
    whole window nothing is compressed, and those layers have nothing to learn from.
    """
    windows = getattr(model.config, "compress_rates", None) or {}
    length = max([32, *(5 * int(rate) // 4 for rate in windows.values())])
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    sizes = [int(part.weight.shape[0]) for part in parts if hasattr(part, "weight")]
    vocabulary = min(sizes or [model.config.get_text_config(decoder=True).vocab_size])
    rows = max(rows, getattr(model.config, "num_codebooks", 0))
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(min(10, vocabulary - 2), vocabulary, (rows, length), generator=drawn)
