"""Where runs are harmed: a warm process with the faults' library preloaded, forked for each run.

What forked runs share is what a run does before its first write: the imports, the registry, the
detection, the samples read from the data and the 4-bit base model; and what chat templates render.
All else each run does itself, from the settings file of ``qlora-core train`` to its exit code.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from exams.forks import fork
from exams.soak import faults
from exams.soak.faults import Fault
from exams.soak.warm import registry
from exams.suite import Case, Cases, Unavailable
from qlora_core.cli import main
from qlora_core.registry.hooks import hookimpl
from qlora_core.registry.manager import PluginRecord
from qlora_core.training import checkpoints
from qlora_core.training.schema import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "/dev/shm"
"""Where the runs' folders lie, if there is one: the library knows what is synced, not the disk."""
PATIENCE = 120.0
"""Seconds after which a run is taken to hang."""


def preloaded(cases: Cases) -> Cases:
    """The same cases, out of a process of their own in which the library is loaded."""

    @functools.wraps(cases)
    def outside(count: int, seed: int) -> Iterator[Case]:
        if sys.platform != "linux" or faults.compiler() is None:
            raise Unavailable("needs Linux and a C compiler (cc)")
        names = [cases.__module__, cases.__name__, str(count), str(seed)]
        environment = {
            "TMPDIR": MEMORY if os.access(MEMORY, os.W_OK) else tempfile.gettempdir(),
            **os.environ, "LD_PRELOAD": str(faults.library()), "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "exams.soak.stage", *names],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        try:
            for line in process.stdout or ():
                yield Case(**json.loads(line))
            if process.wait():
                raise RuntimeError(f"the stage ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()

    return outside


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    """Its exit code; negative: the signal that killed it."""
    said: str
    """All it wrote to the terminal."""
    calls: int
    """How many calls changed something below the folder."""
    saved: int
    """The last step that was reported to be saved; 0: none."""

    @property
    def shell_code(self) -> int:
        """As a shell reports it: 128 plus the signal."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def resumed_step(self) -> int:
        """The step that it went on from; 0: from the start."""
        found = [line for line in self.said.splitlines() if line.startswith("resumed from ")]
        return int(found[-1].rpartition("-")[2]) if found else 0

    @property
    def was_finished(self) -> bool:
        """Whether there was nothing left to do."""
        return "is finished: nothing to do" in self.said


class Cells(ctypes.Structure):
    """Memory that a run shares with whoever waits for it."""

    _fields_ = (("calls", ctypes.c_long), ("saved", ctypes.c_long), ("ready", ctypes.c_long))


@dataclasses.dataclass(frozen=True)
class Running:
    """A forked run."""

    pid: int
    cells: Cells
    screen: Path

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Until it has ended. Raises TimeoutError, and kills it, where it hangs."""
        late = time.monotonic() + patience
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > late:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"no end after {patience:g} s; it said: {self.said[-500:]}")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, self.said, self.cells.calls, self.cells.saved)

    def send(self, signum: int) -> None:
        """A signal, unless it has ended (it is not reaped before ``wait``)."""
        os.kill(self.pid, signum)

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self.screen.read_text("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Starts runs below ``folder``; one that is harmed is watched there."""

    folder: Path

    def fork(self, work: Callable[[Cells], int], fault: Fault | None = None) -> Running:
        """``work`` in a forked process that exits with what it returns, unless ``fault`` hits."""
        cells = Cells.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        screen = self.folder.with_name(f"screen-{time.monotonic_ns()}")
        screen.touch()
        pid = fork()
        if not pid:
            code = 70
            try:
                _to_file(screen)
                _many_open_files()
                counter = ctypes.addressof(cells) + Cells.calls.offset
                faults.arm(self.folder, fault or Fault(), counter)
                cells.ready = 1
                code = work(cells)
            except KeyboardInterrupt:
                code = 128 + signal.SIGINT
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        return Running(pid, cells, screen)

    def train(self, settings: TrainSettings, fault: Fault | None = None) -> Running:
        """``qlora-core train`` with these settings, forked."""
        given = self.folder.with_name("settings.yaml")
        aside = given.with_suffix(".new")  # an earlier start may be reading: it sees one or other
        aside.write_text(json.dumps(dataclasses.asdict(settings)))
        aside.replace(given)
        return self.fork(lambda cells: _train(given, cells), fault)


class _Saved:
    """An observer that tells the waiting process which step is safe."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    @hookimpl
    def qlora_checkpoint_saved(self, path: Path) -> None:
        """Called when the save is done."""
        self.cells.saved = checkpoints.step_of(path)


def _train(settings: Path, cells: Cells) -> int:
    registry().add(_Saved(cells), PluginRecord("saved", "exams", "1"))
    return main.main(["train", "--config", str(settings)])


def _to_file(path: Path) -> None:
    screen = os.open(path, os.O_WRONLY)
    for descriptor in (0, 1, 2):
        os.dup2(screen, descriptor)


def _many_open_files() -> None:
    """Pinned inodes are open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _perform(module: str, name: str, count: str, seed: str) -> None:
    """Run the cases that ``preloaded`` stands for; one line of JSON each."""
    cases = getattr(importlib.import_module(module), name).__wrapped__
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print must not come between
    for case in cases(int(count), int(seed)):
        print(json.dumps(dataclasses.asdict(case)), file=out, flush=True)


if __name__ == "__main__":
    _perform(*sys.argv[1:])
