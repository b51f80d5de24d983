"""A run that dies at any of its calls is resumed and ends as if it had not died.

Every call that changes the run's folder is a point: the process is killed before it (of a write,
half is done), or the power is cut there: then only what was synced is left, or all names and half
of the bytes that were not synced.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exams.soak import plain, small
from exams.soak.faults import KILL, Fault
from exams.soak.rehearsal import Rehearsal, read_calls
from exams.soak.stage import Ended, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite
from qlora_core.training import checkpoints, files
from qlora_core.training.runs import ADAPTER

EVERY = 1_500
"""Asked for so many cases or more, every point is tried; for fewer, a random choice."""
AFTERMATHS = ("killed", "power cut", "power cut, names kept")


SHORT: dict[str, Any] = {
    "max_steps": 4, "save_every": 2, "plain": True, "batch_size": 1, "gradient_accumulation": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A folder as a crash may find it."""

    name: str
    died_at: str = ""
    """The call at which the earlier part of the run was killed; empty: it had finished."""
    damaged: str = ""
    """The folder whose weights were harmed since."""
    changes: dict[str, Any] = field(default_factory=dict)


SCENES = (
    Scene("fresh folder", "mkdir /run", changes={"max_steps": 2}),
    Scene("older checkpoint beside", "rename /run/checkpoints/step-000004"),
    Scene("rotation", "rename /run/checkpoints/step-000003", changes={"keep": 1, "save_every": 1}),
    Scene("over a damaged checkpoint", "rename /run/adapter", "checkpoints/step-000004"),
    Scene("final adapter", "rename /run/adapter"),
    Scene("over a damaged adapter", damaged=ADAPTER),
)


class Set:
    """A scene made ready, kept, and copied back before each point."""

    def __init__(self, scene: Scene, bench: small.Bench) -> None:
        self.scene = scene
        changes = SHORT | scene.changes
        self.run = Rehearsal(bench, scene.name, **changes)
        if scene.died_at:
            self.run.reset()
            number = self.run.calls.index(scene.died_at) + 1
            self.run.start(Fault(KILL, number)).wait()
        if scene.damaged:
            (self.run.output / scene.damaged / checkpoints.ADAPTER).write_bytes(b"")
        self.kept = Path(
            shutil.copytree(self.run.stage.folder, bench.folder / f"kept {scene.name}")
        )

    def points(self) -> list[Point]:
        """The calls that an undisturbed run makes here, each to be disturbed in every way."""
        log = self.kept.with_name("calls")
        self.run.require(self.run.start(Fault(log=log)).wait())
        calls = list(enumerate(read_calls(log), 1))
        return [Point(self, how, number, call) for how in AFTERMATHS for number, call in calls]


@dataclass(frozen=True)
class Point:
    """One way for a run to end early."""

    set: Set
    aftermath: str
    number: int
    call: str

    def case(self) -> Case:
        """Die there, resume, compare."""
        name = f"{self.set.scene.name}, {self.aftermath} at call {self.number}: {self.call}"
        wrong = self._wrong()
        return Case(name, not wrong, wrong)

    def _wrong(self) -> str:
        run = self.set.run
        run.reset(self.set.kept)
        died = self._die()
        if died.code != -9:
            return f"it did not die: {died}"
        adapter = run.output / ADAPTER
        if self.set.scene.damaged != ADAPTER and adapter.exists() and files.damage(adapter):
            return f"the crash left a result that is not whole: {files.damage(adapter)}"
        ended = run.finish()
        wrong = run.wrong(ended)
        if not wrong and not ended.was_finished and ended.resumed_step < died.saved:
            return f"step {died.saved} was saved; it went on from step {ended.resumed_step}"
        return wrong

    def _die(self) -> Ended:
        fault = Fault(KILL, self.number)
        if self.aftermath == "killed":
            return self.set.run.start(fault).wait()
        return self.set.run.cut_power(fault, names_kept="names kept" in self.aftermath)


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """A random choice of ``count`` points of all scenes, or all of them from ``EVERY`` on."""
    with small.bench() as bench:
        share(bench.settings("any"))
        points = [point for scene in SCENES for point in Set(scene, bench).points()]
        random.Random(seed).shuffle(points)
        for point in points if count >= EVERY else points[:count]:
            yield point.case()


SUITE = Suite(
    name="crash points",
    promise="killed or cut off at any call, a run is resumed and ends identical to the bit",
    cases=cases,
    baseline=plain.crash_points,
    full=600,
    quick=40,
)
