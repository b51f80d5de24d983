"""The plan of a run: what it supposes before, and what it says of the road that was taken."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import qlora_base
import tiny

from qlora_core.models.memory_plan import ACTIVATIONS
from qlora_core.training.progress import Silent
from qlora_core.training.schema import TrainSettings
from qlora_core.training.train import dry_run, train


def a_run(folder: Path, family: str, **changes: Any) -> TrainSettings:
    """Two steps on rows and tokens of the embedded base model."""
    model = tiny.save(family, folder / "model", vocab_size=1024, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(qlora_base.MODEL) / name, model)
    rows = Path(qlora_base.TRAINING_ROWS).read_text(encoding="utf-8").splitlines()[:12]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return TrainSettings(
        model=str(model), data=str(folder / "rows.jsonl"), output=str(folder / "run"),
        max_steps=2, sample_prompts=0, device="cpu", compute_dtype="float32", compile="off",
        block=("report", "tensorboard"),
    )  # fmt: skip


def test_the_plan_of_a_run_is_that_of_its_dry_run_where_nothing_is_refused(tmp_path: Path) -> None:
    settings = a_run(tmp_path, "llama")
    supposed = dry_run(settings).memory
    record = train(settings, progress=Silent()).record
    assert "2 of 2 layers by hand" in supposed.road
    assert supposed.if_refused is not None
    assert record["memory"]["planned"] == supposed.terms
    assert record["memory"]["planned_for"] == supposed.road


def test_what_a_probe_refuses_is_planned_again_and_recomputed_where_memory_asks(
    tmp_path: Path,
) -> None:
    """Its layers have the parts that fit, and do more than these say."""
    settings = a_run(tmp_path, "granite", residual_multiplier=0.5)
    supposed = dry_run(settings).memory
    assert "2 of 2 layers by hand" in supposed.road
    tight = dataclasses.replace(settings, memory_budget=(supposed.total + 1) / 1e9)
    assert not dry_run(tight).memory.gradient_checkpointing
    record = train(tight, progress=Silent()).record
    assert "layers by their own code" in record["memory"]["planned_for"]
    assert record["memory"]["planned_total_bytes"] != supposed.total
    assert record["settings"]["gradient_checkpointing"] == "on"


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_what_layers_keep_of_a_budget_is_in_the_plan(share: float, tmp_path: Path) -> None:
    settings = a_run(tmp_path, "llama", num_hidden_layers=6)
    free = dry_run(dataclasses.replace(settings, gradient_checkpointing="off")).memory
    least = dry_run(dataclasses.replace(settings, gradient_checkpointing="on")).memory
    budget = least.total + share * (free.total - least.total)
    record = train(dataclasses.replace(settings, memory_budget=budget / 1e9), progress=Silent())
    planned = record.record["memory"]
    assert planned["planned_total_bytes"] <= budget
    assert planned["planned"][ACTIVATIONS] == record.record["fast_path"]["memory"]["kept_bytes"]
    assert least.terms[ACTIVATIONS] < planned["planned"][ACTIVATIONS] < free.terms[ACTIVATIONS]


def test_the_plain_road_is_planned_as_such(tmp_path: Path) -> None:
    settings = dataclasses.replace(a_run(tmp_path, "llama"), plain=True)
    plan = dry_run(settings).memory
    assert plan.if_refused is None
    assert train(settings, progress=Silent()).record["memory"]["planned"] == plan.terms
