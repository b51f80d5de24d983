"""What the runs of a stage share, found once: they are forked from the process that found it."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from exams.soak import small
from qlora_core.data import bounded, verify
from qlora_core.models.loader import LoadedModel
from qlora_core.registry.detection import Detection
from qlora_core.registry.manager import Registry
from qlora_core.training import setup, train
from qlora_core.training.schema import TrainSettings

RENDERED = (
    (bounded, "_asked"),
    (verify, "_golden"),
    (verify, "identify_prompt_format"),
    (train, "template_report"),
)
"""What asks chat templates: the process that renders them starts slowly."""


class Warm(NamedTuple):
    """What runs of one model have in common."""

    inputs: setup.Inputs
    loaded: LoadedModel


_warm: dict[str, Warm] = {}
"""By the settings' ``model``."""


def share(settings: TrainSettings) -> None:
    """Detect, read the data and load the base now: every run forked later begins with them.

    Only runs of this model, these data and this split of them may be forked then.
    """
    if not _warm:
        for module, name in RENDERED:
            setattr(module, name, _remembered(getattr(module, name)))
        _share_from_here()
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "run")
        small.run(dataclasses.replace(settings, output=output))  # renders all that runs render
    detection = _detect(settings, registry())
    inputs = _read(settings, detection, registry(), side_file=None)
    _warm[settings.model] = Warm(inputs, _load(inputs))


_detect, _read, _load = setup.detect_model, setup.read_inputs, setup.load_base


@functools.cache
def registry() -> Registry:
    """Every installed family; one registry for all runs."""
    return small.watched_by()


def _share_from_here() -> None:
    def read_inputs(given: TrainSettings, *others: Any, **more: Any) -> setup.Inputs:
        if given.model not in _warm:
            return _read(given, *others, **more)
        inputs = _warm[given.model].inputs
        used = dataclasses.replace(given, max_length=inputs.settings.max_length)
        return dataclasses.replace(inputs, given=given, settings=used)

    def detect_model(given: TrainSettings, registry: Registry) -> Detection:
        warm = _warm.get(given.model)
        return warm.inputs.detection if warm else _detect(given, registry)

    def load_base(inputs: setup.Inputs) -> LoadedModel:
        warm = _warm.get(inputs.given.model)
        return warm.loaded if warm else _load(inputs)

    def registry_for(*_: Any) -> Registry:
        return registry()

    for function in (read_inputs, detect_model, load_base, registry_for):
        setattr(setup, function.__name__, function)


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function's answers, each found once."""
    known: dict[str, Any] = {}

    def remember(*given: Any) -> Any:
        question = json.dumps(given, default=_told_apart)
        if question not in known:
            known[question] = function(*given)
        return known[question]

    return remember


def _told_apart(value: Any) -> str:
    """A tokenizer is known by its template and its tokens, all else by how it shows itself."""
    return f"{getattr(value, 'chat_template', '')} {value}"
