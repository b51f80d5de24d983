"""QLoRA fine-tuning that knows your architecture.

The names below are the public API. They load on first use: importing this package
imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qlora_core.errors import MissingEngine

if TYPE_CHECKING:
    from qlora_core.data.collate import collator
    from qlora_core.data.encode import Encoded, encode_conversation
    from qlora_core.data.formats import identify_prompt_format
    from qlora_core.facts.architecture import Architecture, Layout, LoraTargets
    from qlora_core.facts.prompt import PLAIN_PROMPT, PromptFormat
    from qlora_core.facts.tokenizer import TokenizerPolicy
    from qlora_core.models.adapters import attach, lora_config
    from qlora_core.models.loader import load
    from qlora_core.models.quantization import quantization_config
    from qlora_core.models.skeleton import build_skeleton
    from qlora_core.models.structure import Structure, analyse
    from qlora_core.registry.detect import detect
    from qlora_core.registry.detection import Detection
    from qlora_core.registry.hooks import hookimpl
    from qlora_core.registry.manager import Registry
    from qlora_core.training.runs import Run
    from qlora_core.training.settings import TrainSettings
    from qlora_core.training.train import train

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "facts.architecture",
    "Detection": "registry.detection",
    "Encoded": "data.encode",
    "Layout": "facts.architecture",
    "LoraTargets": "facts.architecture",
    "PLAIN_PROMPT": "facts.prompt",
    "PromptFormat": "facts.prompt",
    "Registry": "registry.manager",
    "Run": "training.runs",
    "Structure": "models.structure",
    "TokenizerPolicy": "facts.tokenizer",
    "TrainSettings": "training.settings",
    "analyse": "models.structure",
    "attach": "models.adapters",
    "build_skeleton": "models.skeleton",
    "collator": "data.collate",
    "detect": "registry.detect",
    "encode_conversation": "data.encode",
    "hookimpl": "registry.hooks",
    "identify_prompt_format": "data.formats",
    "load": "models.loader",
    "lora_config": "models.adapters",
    "quantization_config": "models.quantization",
    "train": "training.train",
}
ENGINE_PACKAGES = {
    "accelerate", "bitsandbytes", "datasets", "jinja2", "numpy", "peft", "psutil", "pyarrow",
    "rich", "safetensors", "tokenizers", "torch", "transformers", "yaml",
}  # fmt: skip

__all__ = [  # noqa: RUF022  (grouped by who needs them)
    # facts: what plugins are made of
    "Architecture", "LoraTargets", "Layout", "PromptFormat", "PLAIN_PROMPT", "TokenizerPolicy",
    "hookimpl",
    # detection: no torch for a described family
    "detect", "Detection", "Registry",
    # the engine's parts, each usable without the others
    "build_skeleton", "analyse", "Structure",
    "quantization_config", "load", "lora_config", "attach",
    "encode_conversation", "Encoded", "identify_prompt_format", "collator",
    "train", "TrainSettings", "Run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ENGINE_PACKAGES:
            raise MissingEngine(error.name or "torch") from None
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
