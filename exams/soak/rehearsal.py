"""A run that is first made undisturbed: the measure of what the disturbed ones must end as."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from exams.soak import faults, small
from exams.soak.faults import Fault
from exams.soak.stage import Ended, Running, Stage
from qlora_core.training.runs import RECORD

RANDOM_NAME = re.compile(r"(?<=\.staging-)\w{8}|(?<=\.trash-)\w{8}|(?<=\.tmp)\w{6}")


class Rehearsal:
    """Trains once, undisturbed. ``expected``, ``calls`` and ``seconds`` are what it came to."""

    def __init__(self, bench: small.Bench, place: str = "case", **changes: Any) -> None:
        self.settings = bench.settings(f"{place}/run", **changes)
        self.output = Path(self.settings.output)
        self.stage = Stage(self.output.parent)
        self.shadow = self.stage.folder.with_name(f"shadow of {place}")
        self.reset()
        self.expected: small.Trace | None = None
        log = self.stage.folder.with_name(f"calls of {place}")
        began = time.monotonic()
        self.require(self.start(Fault(log=log)).wait())
        self.seconds = time.monotonic() - began
        self.calls = read_calls(log)

    def reset(self, kept: Path | None = None) -> None:
        """Empty the folder, or put back what was ``kept``."""
        folder = self.stage.folder
        empty(folder)
        if kept is not None:
            shutil.copytree(kept, folder, dirs_exist_ok=True)

    def start(self, fault: Fault | None = None, **changes: Any) -> Running:
        """The run, going on from where the folder is, with these settings changed."""
        settings = dataclasses.replace(self.settings, **{"resume": True, **changes})
        return self.stage.train(settings, fault)

    def finish(self) -> Ended:
        """The run, undisturbed, to its end."""
        return self.start().wait()

    def cut_power(self, fault: Fault, *, names_kept: bool) -> Ended:
        """Train until ``fault`` kills it, then leave what a power cut leaves."""
        lose = faults.lose_unsynced_bytes if names_kept else faults.lose_unsynced
        with faults.all_synced(self.stage.folder, self.shadow):
            ended = self.start(fault._replace(shadow=self.shadow)).wait()
            lose(self.stage.folder, self.shadow)
        return ended

    def wrong(self, ended: Ended) -> str:
        """In what a run that has ended is not the undisturbed one; empty: in nothing."""
        if ended.code:
            return f"exit code {ended.code}: {ended.said[-500:]}"
        status = json.loads((self.output / RECORD).read_text("utf-8"))["status"]
        if status != "finished":
            return f"exit code 0, and {RECORD} says {status}"
        found = small.trace(self.output)
        self.expected = self.expected or found
        hidden = [path.name for path in self.stage.folder.rglob(".*")]
        left = [name for name in hidden if f"{name} could not be removed" not in ended.said]
        return small.difference(self.expected, found) or (f"left behind: {left}" if left else "")

    def require(self, ended: Ended) -> None:
        """Raise RuntimeError unless an undisturbed run has done well."""
        if wrong := self.wrong(ended):
            raise RuntimeError(f"undisturbed it fails: {wrong}")


def empty(folder: Path) -> None:
    """Remove what is in it, not the folder itself: a disk may be mounted there."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_calls(log: Path) -> list[str]:
    """The calls that a run made, without the random parts of their names."""
    return [RANDOM_NAME.sub("*", line) for line in log.read_text().splitlines()]
