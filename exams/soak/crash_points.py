"""A run that dies at any of its calls is resumed and ends as if it had not died.

Every call that changes the run's folder is a point: the process is killed before it (of a write,
half is done), or the power is cut there: then only what was synced is left, or all names and half
of the bytes that were not synced.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exams.soak import faults, small
from exams.soak.faults import KILL, Fault
from exams.soak.stage import Ended, Stage, preloaded, share
from exams.suite import Case, Suite
from qlora_core.training import checkpoints, files
from qlora_core.training.runs import ADAPTER
from qlora_core.training.schema import TrainSettings

EVERY = 1_500
"""Asked for so many cases or more, every point is tried; for fewer, a random choice."""
AFTERMATHS: dict[str, Callable[[Path, Path], None] | None] = {
    "killed": None,
    "power cut": faults.lose_unsynced,
    "power cut, names kept": faults.lose_unsynced_bytes,
}
RANDOM_NAME = re.compile(r"(?<=\.staging-)\w{8}|(?<=\.trash-)\w{8}|(?<=\.tmp)\w{6}")


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
    Scene("over a damaged adapter", damaged="adapter"),
)


@dataclass(frozen=True)
class Point:
    """One way for a run to end early."""

    scene: Scene
    aftermath: str
    number: int
    call: str

    @property
    def name(self) -> str:
        """Without the random parts of file names: the same in every run."""
        return f"{self.scene.name}, {self.aftermath} at call {self.number}: {self.call}"


class Exam:
    """Scenes are set once, kept, and copied back before each point."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench = bench
        self.stage = Stage(bench.folder / "case")
        self.output = self.stage.folder / "run"
        self.shadow = bench.folder / "shadow"
        self.log = bench.folder / "calls"
        self.expected: dict[str, small.Trace] = {}

    def settings(self, scene: Scene, **more: Any) -> TrainSettings:
        """Four steps, every second one saved, unless the scene says otherwise."""
        changes = {"max_steps": 4, "save_every": 2} | scene.changes | more
        return self.bench.settings("case/run", **changes)

    def points(self, scene: Scene) -> list[Point]:
        """Set the scene; its points are the calls that an undisturbed run makes there."""
        self._empty()
        self._require(self.stage.train(self.settings(scene), log=self.log), scene)
        if scene.died_at:
            number = self._calls().index(scene.died_at) + 1
            self._empty()
            self.stage.train(self.settings(scene), fault=Fault(KILL, number))
        if scene.damaged:
            (self.output / scene.damaged / checkpoints.ADAPTER).write_bytes(b"")
        shutil.copytree(self.stage.folder, self._kept(scene))
        self._require(self.stage.train(self.settings(scene, resume=True), log=self.log), scene)
        calls = list(enumerate(self._calls(), 1))
        return [Point(scene, how, number, call) for how in AFTERMATHS for number, call in calls]

    def try_(self, point: Point) -> Case:
        """Die there, resume, compare."""
        scene, spoil = point.scene, AFTERMATHS[point.aftermath]
        shutil.rmtree(self.stage.folder)
        shutil.copytree(self._kept(scene), self.stage.folder)
        settings = self.settings(scene, resume=True)
        fault = Fault(KILL, point.number)
        if spoil is None:
            died = self.stage.train(settings, fault=fault)
        else:
            with faults.all_synced(self.stage.folder, self.shadow):
                died = self.stage.train(settings, fault=fault, shadow=self.shadow)
                spoil(self.stage.folder, self.shadow)
        if died.code != -9:
            return Case(point.name, False, f"it did not die: {died}")
        if scene.damaged != ADAPTER and (spoilt := self._spoilt()):
            return Case(point.name, False, spoilt)
        resumed = self.stage.train(settings)
        wrong = self.wrong(scene, resumed)
        if not wrong and resumed.resumed_step < died.saved:
            wrong = f"step {died.saved} was saved; it went on from step {resumed.resumed_step}"
        return Case(point.name, not wrong, wrong)

    def wrong(self, scene: Scene, ended: Ended) -> str:
        """In what a resumed run differs from one that did not die; empty: in nothing."""
        if ended.code:
            return f"exit code {ended.code}: {ended.said[-500:]}"
        expected = self.expected.setdefault(scene.name, small.trace(self.output))
        left = [p.name for p in self.stage.folder.rglob(".*")]
        different = small.difference(expected, small.trace(self.output))
        return different or (f"left behind: {left}" if left else "")

    def _require(self, ended: Ended, scene: Scene) -> None:
        """An undisturbed run does well; the first one of a scene is the measure of all others."""
        if wrong := self.wrong(scene, ended):
            raise RuntimeError(f"{scene.name}: undisturbed it fails: {wrong}")

    def _spoilt(self) -> str:
        """Whether there is an adapter that is not whole: results are whole or not there."""
        adapter = self.output / ADAPTER
        if not adapter.exists() or (reason := files.damage(adapter)) is None:
            return ""
        return f"a crash left an adapter that is not whole: {reason}"

    def _calls(self) -> list[str]:
        return [RANDOM_NAME.sub("*", line) for line in self.log.read_text().splitlines()]

    def _kept(self, scene: Scene) -> Path:
        return self.bench.folder / f"kept {scene.name}"

    def _empty(self) -> None:
        shutil.rmtree(self.stage.folder, ignore_errors=True)
        self.stage.folder.mkdir()


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """A random choice of ``count`` points of all scenes, or all of them from ``EVERY`` on."""
    with small.bench() as bench:
        exam = Exam(bench)
        share(exam.settings(SCENES[0]))
        points = [point for scene in SCENES for point in exam.points(scene)]
        random.Random(seed).shuffle(points)
        yield from map(exam.try_, points if count >= EVERY else points[:count])


SUITE = Suite(
    name="crash points",
    promise="killed or cut off at any call, a run is resumed and ends identical to the bit",
    cases=cases,
    full=EVERY,
    quick=40,
)
