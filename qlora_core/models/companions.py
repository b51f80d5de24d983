"""The files beside a model's weights that make it usable: tokenizer, template, stop tokens."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from qlora_core.data.tokenizer import has_tokenizer, load_tokenizer, stop_token_ids
from qlora_core.models.loader import LoadedModel
from qlora_core.models.trained import TrainedAdapter

TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "*.model", "tekken.json", "*.tiktoken", "prompt_format.json",
)  # fmt: skip
BASE_FILES = ("*.py", "LICENSE*", "NOTICE*", "preprocessor_config.json", "processor_config.json")
GENERATION = "generation_config.json"


def tokenizer_for(loaded: LoadedModel, trained: TrainedAdapter, how: Mapping[str, Any]) -> Any:
    """The tokenizer beside the adapter, else the base's, None where neither has one.

    ``how`` holds ``trust_remote_code`` and ``registry``.
    """
    folder = _tokenizer_folder(loaded, trained)
    if not has_tokenizer(folder):
        return None
    return load_tokenizer(
        folder,
        loaded.detection.architecture,
        offline=True,
        trust_remote_code=how["trust_remote_code"],
        registry=how["registry"],
    )


def copy_companions(
    loaded: LoadedModel, trained: TrainedAdapter, to: Path, how: Mapping[str, Any]
) -> None:
    """Copy tokenizer and chat template, the base's code and licence, and the stop tokens."""
    _copy(loaded.folder, BASE_FILES, to)
    _copy(_tokenizer_folder(loaded, trained), TOKENIZER_FILES, to)
    if (trained.folder / GENERATION).is_file():
        shutil.copyfile(trained.folder / GENERATION, to / GENERATION)
    else:
        _generation_config(loaded, tokenizer_for(loaded, trained, how)).save_pretrained(to)


def copy_beside(folder: Path, to: Path) -> None:
    """Copy all that is not weights and configs: tokenizer, chat template, code, licence."""
    _copy(folder, (*BASE_FILES, *TOKENIZER_FILES), to)


def _copy(folder: Path, patterns: tuple[str, ...], to: Path) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, to / file.name)


def _tokenizer_folder(loaded: LoadedModel, trained: TrainedAdapter) -> Path:
    return trained.folder if has_tokenizer(trained.folder) else loaded.folder


def _generation_config(loaded: LoadedModel, tokenizer: Any) -> GenerationConfig:
    """The base's, with the tokenizer's stop tokens among those that end generation."""
    config = GenerationConfig.from_dict(loaded.model.generation_config.to_dict())
    if tokenizer is not None:
        stated = config.eos_token_id
        stops = [
            *stop_token_ids(tokenizer, loaded.detection.architecture.tokenizer),
            *(stated if isinstance(stated, list) else [stated]),
        ]
        config.eos_token_id = [i for i in dict.fromkeys(stops) if i is not None] or None
    return config
