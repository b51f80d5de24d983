"""Every place where a plugin can take part, in the order in which they are called.

Three kinds, three answers to a plugin that raises:

* **provide** hooks state facts: the plugin is set aside whole, all others work;
* **prepare** hooks change what is trained: the run stops and the error names the plugin;
* **observe** hooks watch: the failure is logged once and the plugin is muted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from qlora_core.facts.architecture import Architecture, ModelConfig
    from qlora_core.facts.prompt import PromptFormat

PROJECT = "qlora_core"
API, OLDEST_API = 1, 1
"""The version of the hooks below, and the oldest that plugins may be written for.

A plugin may state its own as ``QLORA_CORE_API = 1`` beside its hooks. A newer hook or argument
raises ``API``; ``OLDEST_API`` follows two minor releases later.
"""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

PROVIDE = ("qlora_architectures", "qlora_prompt_formats", "qlora_infer_architecture")
PREPARE = ("qlora_prepare_tokenizer", "qlora_prepare_model")
OBSERVE = (
    "qlora_run_started",
    "qlora_step_finished",
    "qlora_checkpoint_saved",
    "qlora_run_finished",
)


@hookspec
def qlora_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Provide model families."""


@hookspec
def qlora_prompt_formats() -> Iterable[PromptFormat]:  # type: ignore[empty-body]
    """Provide prompt formats that any family may be trained with."""


@hookspec
def qlora_infer_architecture(config: ModelConfig) -> Architecture | None:
    """Make an architecture for a config that nobody has described, or return None.

    Asked only when no described family fits. May import torch.
    """


@hookspec
def qlora_prepare_tokenizer(tokenizer: Any, architecture: Architecture) -> None:
    """Adjust a tokenizer after the family's policy was applied."""


@hookspec
def qlora_prepare_model(model: Any, architecture: Architecture) -> None:
    """Adjust the quantized model before adapters are attached."""


@hookspec
def qlora_run_started(run: Any) -> None:
    """Observe that a run begins: ``run.record`` holds settings, detection and data counts."""


@hookspec
def qlora_step_finished(run: Any, step: Any) -> None:
    """Observe one optimizer step or one evaluation: ``step`` is its line of metrics.jsonl."""


@hookspec
def qlora_checkpoint_saved(run: Any, path: Path) -> None:
    """Observe that a whole checkpoint lies at ``path``."""


@hookspec
def qlora_run_finished(run: Any, outcome: str) -> None:
    """Observe the end of a run: ``outcome`` is finished, stopped, interrupted or failed."""
