"""Scalars are written when they are asked for, and only then."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import pytest

from qlora_core import Run
from qlora_core.errors import BadInput
from qlora_core.registry.manager import Registry
from qlora_core.training.runs import new_record
from qlora_core.training.schema import TrainSettings
from qlora_core.training.setup import registry_for

LINES = (
    {"step": 1, "loss": 2.5, "learning_rate": 1e-4, "gradient_norm": 0.5, "tokens": 10},
    {"step": 1, "eval_loss": 2.25, "eval_tokens": 10},
)


def observed(folder: Path, trackers: tuple[str, ...]) -> Path:
    registry = Registry.from_environment(block=["report"])
    run = Run(folder, new_record() | {"settings": {"trackers": trackers}})
    registry.observe("qlora_run_started", run=run)
    for line in LINES:
        registry.observe("qlora_step_finished", run=run, step=line)
    registry.observe("qlora_run_finished", run=run, outcome="finished")
    assert [record.name for record in registry.records if record.status == "broken"] == []
    return folder / "tensorboard"


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    assert not observed(tmp_path, ()).exists()


def test_every_measure_is_a_scalar_when_asked(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(observed(tmp_path, ("tensorboard",))))
    read.Reload()
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert found["train/loss"] == [(1, 2.5)]
    assert found["eval/loss"] == [(1, 2.25)]
    assert set(found) == {"train/loss", "train/learning_rate", "train/gradient_norm", "eval/loss"}


def test_a_missing_package_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING, logger="qlora-core"):
        assert not observed(tmp_path, ("tensorboard",)).exists()
    assert [r.message for r in caplog.records if "qlora-core[tensorboard]" in r.message] != []
    assert len(caplog.records) == 1


def test_a_tracker_that_no_plugin_writes_is_refused_before_the_run(tmp_path: Path) -> None:
    settings = TrainSettings(model="m", data="d", output=str(tmp_path), trackers=("tensorbord",))
    with pytest.raises(BadInput, match="no active plugin is called 'tensorbord'"):
        registry_for(settings)
    assert registry_for(dataclasses.replace(settings, trackers=("tensorboard",))).records
