"""Tiny models of real families, saved where a test wants them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.facts.architecture import Architecture
from qlora_core.registry.detect import installed


def family(name: str) -> Architecture:
    return installed().architectures[name]


def build(name: str, **changes: Any) -> Any:
    """A randomly initialised model of the family's example config, in bfloat16."""
    values = {"pad_token_id": None, **family(name).example, **changes}  # Phi in 5.0 reads it
    config = AutoConfig.for_model(
        **{key: value for key, value in values.items() if key != "architectures"}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing may be zero or one by accident
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def save(name: str, folder: Path, **changes: Any) -> Path:
    build(name, **changes).save_pretrained(folder)
    return folder


@cache
def tokens(vocabulary: int = 256) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
