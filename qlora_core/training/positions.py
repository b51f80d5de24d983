"""How long samples may be: as the user says, and as the model was made."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from qlora_core.errors import BadInput
from qlora_core.models.coverage import skeleton_of
from qlora_core.registry.detection import Detection, Notice
from qlora_core.training.schema import TrainSettings

MAX_LENGTH = 2048
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def length_of_samples(settings: TrainSettings, detection: Detection) -> int:
    """Tokens per sample: as given, else 2048, or what the config says the model can take."""
    if settings.max_length is not None:
        return settings.max_length
    return min(MAX_LENGTH, stated_positions(detection) or MAX_LENGTH)


def stated_positions(detection: Detection) -> int | None:
    """The most positions that the config names, None where it names none."""
    text = {**detection.config, **(detection.config.get("text_config") or {})}
    limits = [int(text[key]) for key in _POSITIONS if isinstance(text.get(key), int)]
    return min((limit for limit in limits if limit > 1), default=None)


def with_length_checked(detection: Detection, length: int) -> Detection:
    """``detection``, with a notice where ``length`` exceeds the positions that the config names.

    Raises BadInput where the model has a table of positions, which then ends too early.
    """
    limit = stated_positions(detection)
    if limit is None or length <= limit:
        return detection
    if not detection.config.get("auto_map"):  # its class is not known before its code has run
        require_positions(skeleton_of(detection), length)
    notice = Notice(
        "beyond-positions",
        f"max_length is {length:,}, and the model was made for {limit:,} positions",
        f"--max-length {limit} is as far as it was trained; past that it has never read a text",
    )
    return dataclasses.replace(detection, warnings=(*detection.warnings, notice))


def require_positions(model: Any, length: int) -> None:
    """Raise BadInput where the model has a table of positions and ``length`` exceeds it.

    A table is an embedding other than the tokens' with as many rows as the config has positions.
    Rotary and relative positions have none: there a longer sample is only unusual.
    """
    config = model.config.get_text_config()
    limit = next((n for key in _POSITIONS if (n := getattr(config, key, None))), None)
    if limit is None or length <= limit:
        return
    tokens = model.get_input_embeddings()
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and module is not tokens
        if table and limit <= module.num_embeddings <= limit + 8:
            raise BadInput(
                f"max_length is {length}, and the model has {limit} positions ({name})",
                f"use --max-length {limit} or less",
            )
