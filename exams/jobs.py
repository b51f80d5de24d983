"""Suites in processes of their own, some at a time, forked from one that has imported them all."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exams.forks import fork

ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""So that a suite computes as fast beside another one as alone."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One suite: ``perform`` says what it does, and returns its figures; None: it was skipped."""

    name: str
    perform: Callable[[], Figures | None]
    alone: bool = False
    """Whether no other one may run meanwhile."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def perform_all(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, Figures | str | None]]:
    """Each task's name and figures, as it ends (a text: why there are none).

    What it says is shown in one piece. Tasks that must be alone come first.
    """
    waiting = sorted(tasks, key=lambda task: not task.alone)
    running: dict[int, tuple[Task, Path]] = {}
    with tempfile.TemporaryDirectory(prefix="exam-") as folder:
        while waiting or running:
            alone = any(task.alone for task, _ in running.values())
            room = 1 if alone or (waiting and waiting[0].alone) else jobs
            if waiting and len(running) < room:
                task = waiting.pop(0)
                place = Path(folder) / str(len(waiting))
                place.mkdir()
                running[_forked(task, place)] = task, place
                print(f"{task.name}: begun", flush=True)
                continue
            pid, status = os.wait()
            task, place = running.pop(pid)
            print((place / "said").read_text("utf-8", errors="replace"), end="", flush=True)
            yield task.name, _figures(place, os.waitstatus_to_exitcode(status))


def _figures(place: Path, code: int) -> Figures | str | None:
    path = place / "figures.json"
    if code or not path.is_file():
        return f"its process ended with {code}"
    found: Figures | None = json.loads(path.read_text(encoding="utf-8"))
    return found


def _forked(task: Task, place: Path) -> int:
    """The process id of a child that performs the task and leaves its figures in ``place``."""
    child = fork()
    if child:
        return child
    code = 1
    try:
        screen = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(screen, descriptor)
        os.environ |= ONE_THREAD
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        found = task.perform()
        (place / "figures.json").write_text(json.dumps(found), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
