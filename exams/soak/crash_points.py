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

EVERY = 600
"""Asked for so many cases or more, every point is tried; for fewer, a random choice."""
KILLED, CUT, NAMES_KEPT = "killed", "power cut", "power cut, names kept"


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

    def points(self, *aftermaths: str) -> list[Point]:
        """The calls that an undisturbed run makes here, each with every one of ``aftermaths``."""
        log = self.kept.with_name("calls")
        self.run.require(self.run.start(Fault(log=log)).wait())
        calls = list(enumerate(read_calls(log), 1))
        return [Point(self, how, number, call) for how in aftermaths for number, call in calls]


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
        if self.aftermath == KILLED:
            return self.set.run.start(fault).wait()
        return self.set.run.cut_power(fault, names_kept=self.aftermath == NAMES_KEPT)


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """The process is killed at a random choice of calls, or at all of them from ``EVERY`` on."""
    return _tried(count, seed, KILLED)


@preloaded
def power_cuts(count: int, seed: int) -> Iterator[Case]:
    """The power is cut at a random choice of calls, or at all of them from ``EVERY`` on."""
    return _tried(count, seed, CUT, NAMES_KEPT)


def _tried(count: int, seed: int, *aftermaths: str) -> Iterator[Case]:
    with small.bench() as bench:
        share(bench.settings("any"))
        points = [point for scene in SCENES for point in Set(scene, bench).points(*aftermaths)]
        random.Random(seed).shuffle(points)
        for point in points if count >= EVERY else points[:count]:
            yield point.case()


SUITE = Suite(
    name="crash points",
    promise="killed at any call, a run is resumed and ends identical to the bit",
    cases=cases,
    baseline=plain.crash_points,
    full=EVERY,
    quick=25,
)
POWER_SUITE = Suite(
    name="power cuts",
    promise="with all lost that was not synced, at any call, a run ends identical to the bit",
    cases=power_cuts,
    full=EVERY,
    quick=25,
)
