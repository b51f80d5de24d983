"""Families as the exam takes them: each as every model type that it claims, built small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.models.parts import Structure
from qlora_core.models.skeleton import (
    build_skeleton,
    installed_release,
    register_classes,
    too_old_for,
)
from qlora_core.models.structure import analyse
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import PluginRecord, Registry

OURS = "qlora-core"
NEWEST_TRANSFORMERS = (5, 23)
"""The newest supported release: our families describe the types that it knows."""


_ANALYSED: dict[str, Structure] = {}


class Case(NamedTuple):
    """One family, built as one of the model types that it claims."""

    family: Architecture
    model_type: str
    registry: Registry | None = None
    """The plugins that it is examined among: the installed ones, unless stated."""

    @property
    def config(self) -> dict[str, Any]:
        """The family's example, as this model type."""
        return {**self.family.example, "model_type": self.model_type}


@cache
def registry_of(plugin: str) -> Registry:
    """Everything installed, and the plugin itself where it is a file."""
    if _is_file(plugin):
        return Registry.from_environment(files=[plugin])
    return installed()


def records_of(plugin: str) -> list[PluginRecord]:
    """The plugins of that entry point or file; all of qlora-core's own for ``"*"``."""
    records = registry_of(plugin).records
    if plugin == "*":
        return [record for record in records if record.source == OURS]
    if _is_file(plugin):
        return [record for record in records if record.source == str(Path(plugin))]
    return [record for record in records if record.name == plugin]


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py")


def cases_of(plugin: str) -> Iterator[Case]:
    """Every family as each of its types that can be built; its example's own always."""
    registry = registry_of(plugin)
    for record in records_of(plugin):
        for name in record.provides:
            family = registry.architectures[name]
            register_classes(family)
            own = str(family.example.get("model_type"))
            known = [kind for kind in family.model_types if kind in CONFIG_MAPPING]
            yield from (Case(family, kind, registry) for kind in dict.fromkeys((own, *known)))


def marked(case: Case, plugin: str) -> Any:
    """The case as a parameter of pytest: slow, where it is one of our many."""
    name = f"{case.family.name}-{case.model_type}"
    more = plugin == "*" and case.model_type != case.family.example.get("model_type")
    return pytest.param(case, id=name, marks=[pytest.mark.slow] if more else [])


def require_class(family: Architecture, model_type: str) -> None:
    """Skip, visibly, where there is no class to examine, or another than the facts describe.

    It may come with the checkpoints, whose code is never run here, or with a transformers
    that is newer than the installed one; on the newest supported one every type must be known.
    """
    if too_old_for(family):
        pytest.skip(f"{family.name} is described as of transformers {family.since}")
    if family.not_built and not _builds({**family.example, "model_type": model_type}):
        pytest.skip(f"{model_type} cannot be built here: {family.not_built}")
    if model_type in CONFIG_MAPPING:
        return
    if family.example.get("auto_map"):
        pytest.skip(f"the class of {model_type} comes with its checkpoints (auto_map)")
    if installed_release() < NEWEST_TRANSFORMERS:
        pytest.skip(f"transformers {transformers.__version__} does not know {model_type} yet")


def _builds(config: Mapping[str, Any]) -> bool:
    try:
        return bool(build_skeleton(config))
    except BadInput:
        return False


def structure_of(case: Case) -> Structure:
    """What the case's skeleton is made of; skips as `require_class` does."""
    require_class(case.family, case.model_type)
    key = repr(case.config)
    if key not in _ANALYSED:
        _ANALYSED[key] = analyse(build_skeleton(case.config))
    return _ANALYSED[key]
