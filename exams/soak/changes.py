"""A run that is resumed with another setting is refused, unless that setting decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exams.soak import small
from exams.soak.all_changes import DECIDING, HARMLESS, Change
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import BadInput, QloraError, TrainingStopped
from qlora_core.training.identity import FREE
from qlora_core.training.progress import Silent
from qlora_core.training.runs import RECORD
from qlora_core.training.schema import TrainSettings
from qlora_core.training.train import train

BEFORE: dict[str, Any] = {
    "eval_split": 0.25, "eval_every": 3, "early_stop": 9, "final_adapter": "last",
    "columns": {"question": "user", "answer": "assistant"},
}  # fmt: skip
"""What the resumed run was started with: values that can be changed one by one."""


class Ears(Silent):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        """Remember it."""
        self.heard.append(text)


class Stage:
    """A run that was stopped half-way and one that is finished, to be resumed with changes."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench = bench
        self.settings = bench.settings("run", **BEFORE)
        straight = bench.settings("straight", **BEFORE)
        small.run(straight)
        self.expected = small.trace(straight.output)
        with contextlib.suppress(TrainingStopped):
            small.run(self.settings, small.Stopper(4))
        self.kept = {
            "stopped": shutil.copytree(self.settings.output, bench.folder / "kept stopped"),
            "finished": shutil.copytree(straight.output, bench.folder / "kept finished"),
        }

    def tried(self, name: str) -> Case:
        """The case of one change."""
        return self._deciding(name) if name in DECIDING else self._harmless(name)

    def every_key(self) -> Case:
        """Whether there is a case for every key that a run records."""
        keys = set(json.loads((self.kept["stopped"] / RECORD).read_text("utf-8"))["identity"])
        tried = {key for key, _ in DECIDING.values()}
        missing = keys - tried - {"compute_dtype", "architecture"}  # they come with another key
        free = FREE - {key for key, _ in HARMLESS.values()}
        missing |= free - {"data", "output", "resume", "allow_change", "eval_data"}
        return Case("every recorded key", not missing, f"no case for {missing}")

    def _changed(self, state: str, change: Change) -> TrainSettings:
        """A fresh copy of a run, and the settings to resume it with."""
        output = Path(self.settings.output)
        shutil.rmtree(output)
        shutil.copytree(self.kept[state], output)
        values = change(self.bench, output)
        return dataclasses.replace(self.settings, resume=True, **values)

    def _deciding(self, name: str) -> Case:
        """Refused with both values, during the run and after it; accepted when it is allowed."""
        key, change = DECIDING[name]
        record = Path(self.settings.output) / RECORD
        for state in self.kept:
            given = self._changed(state, change)
            before = record.read_bytes()
            refusal = _refusal(given)
            named = [line.strip() for line in refusal.splitlines()[1:]]
            said = next((line for line in named if line.startswith(f"{key}: was ")), "")
            if ", is " not in said:
                return Case(name, False, f"{state}: {key} is not named: {refusal}")
            if before != record.read_bytes():
                return Case(name, False, f"{state}: the refusal changed the record")
        return self._allowed(name, tuple(line.partition(":")[0] for line in named))

    def _allowed(self, name: str, keys: tuple[str, ...]) -> Case:
        """Accepted and recorded; or, where the adapter no longer fits, refused for that reason."""
        given = self._changed("stopped", DECIDING[name][1])
        try:
            run = train(dataclasses.replace(given, allow_change=keys), progress=Ears())
        except QloraError as reason:
            return Case(name, "adapter" in reason.problem, f"allowed, and then: {reason.problem}")
        noted = [n["message"] for n in run.record["notices"] if n["code"] == "allowed-change"]
        told = all(any(f"{key}: was " in note for note in noted) for key in keys)
        return Case(name, told and run.status == "finished", f"allowed: {noted}")

    def _harmless(self, name: str) -> Case:
        """Resumed to the same result, and said."""
        key, change = HARMLESS[name]
        given = self._changed("stopped", change)
        ears = Ears()
        train(given, progress=ears)
        different = small.difference(self.expected, small.trace(given.output))
        said = [line for line in ears.heard if line.startswith(f"{key}: was ")]
        passed = bool(said) and not different
        return Case(name, passed, f"{different or 'identical'}; said: {said}")


def _refusal(settings: TrainSettings) -> str:
    try:
        train(settings, progress=Ears())
    except BadInput as refusal:
        return refusal.problem
    return "resumed in silence"


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every change, in a random order: those that decide the result, and those that do not."""
    with small.bench() as bench:
        stage = Stage(bench)
        yield stage.every_key()
        names = [*DECIDING, *HARMLESS]
        random.Random(seed).shuffle(names)
        for name in names[: count - 1]:
            yield stage.tried(name)


SUITE = Suite(
    name="changes",
    promise="a changed setting, input or release is refused with both values, or decides nothing",
    cases=cases,
    full=1 + len(DECIDING) + len(HARMLESS),
    quick=10,
    baseline=defined_in("exams.soak.plain_faults", "changed"),
)
