"""One run, one folder: of many starts at once one runs, and no run touches another's folder."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exams.soak import small
from exams.soak.faults import KILL, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import Ended, Running, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite, defined_in
from qlora_core.training.checkpoints import name_of
from qlora_core.training.runs import ADAPTER, CHECKPOINTS, RECORD

STARTS = 5
LENGTHS: dict[str, Any] = {"max_steps": 8, "save_every": 2}
PATIENCE = 10.0
"""Seconds for four of five to be refused."""


def _at_once(run: Rehearsal, dice: random.Random, *, killed: bool) -> str:
    """Start some runs in one folder; kill the one that runs, or let it end; then finish."""
    run.reset()
    if dice.random() < 0.5:  # there is something to go on with
        number = dice.choice([n for n, call in enumerate(run.calls, 1) if CHECKPOINTS in call])
        run.start(Fault(KILL, number)).wait()
    resume = (run.output / RECORD).exists()
    all_ = [run.start(resume=resume) for _ in range(STARTS)]
    late = time.monotonic() + PATIENCE
    while sum(map(_is_refused, all_)) < STARTS - 1 and time.monotonic() < late:
        time.sleep(0.01)
    if killed:
        time.sleep(dice.random() * run.seconds / 2)
        for one in all_:
            if not _is_refused(one):
                one.send(9)
    ended = [one.wait() for one in all_]
    wrong = _one_ran(run, all_, ended, killed=killed)
    return wrong or run.wrong(run.finish())


def _is_refused(one: Running) -> bool:
    return "error: another run is at work" in one.said


def _one_ran(run: Rehearsal, all_: list[Running], ended: list[Ended], *, killed: bool) -> str:
    """Empty if exactly one was not refused, and the others name it by pid, host and run id."""
    ran = [number for number, one in enumerate(ended) if one.code != 2]
    codes = [one.code for one in ended]
    if len(ran) != 1 or codes[ran[0]] not in ((0, -9) if killed else (0,)):
        return f"exit codes {codes}: {ended[0].said[-300:]}"
    record = run.output / RECORD
    run_id = json.loads(record.read_text())["run_id"] if record.exists() else ""
    owner = f"(process {all_[ran[0]].pid} on {socket.gethostname()}, run {run_id}"
    silent = [one.said[-300:] for one in ended if one.code == 2 and owner not in one.said]
    return f"{owner} is not named: {silent[0]}" if silent else ""


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """Every second time the one that runs is killed: then the folder is free."""
    with small.bench() as bench:
        share(bench.settings("any"))
        run = Rehearsal(bench, **LENGTHS | {"max_steps": 16})
        for number in range(count):
            killed = number % 2 == 0
            wrong = _at_once(run, random.Random(f"{seed} {number}"), killed=killed)
            name = f"{number}: {STARTS} starts at once" + (
                ", the first one killed" if killed else ""
            )
            yield Case(name, not wrong, wrong)


def _bring(what: str) -> Callable[[Path, Path], None]:
    """Put their ``what`` in the place of mine; my result is gone, so that the run goes on."""

    def bring(mine: Path, theirs: Path) -> None:
        shutil.rmtree(mine / ADAPTER)
        shutil.rmtree(mine / what, ignore_errors=True)
        shutil.copytree(theirs / what, mine / what)

    return bring


def _forget(mine: Path, _: Path) -> None:
    (mine / RECORD).unlink()


def _nothing(_: Path, __: Path) -> None:
    """The folder of a finished run as it is."""


FOREIGN: dict[str, tuple[Callable[[Path, Path], None], bool, dict[str, Any]]] = {
    "the same settings, not resumed": (_nothing, False, {}),
    "another seed, not resumed": (_nothing, False, {"seed": 1}),
    "another seed, resumed": (_nothing, True, {"seed": 1}),
    "a longer run, resumed": (_nothing, True, {"max_steps": 12}),
    "a shorter run, resumed": (_nothing, True, {"max_steps": 4}),
    "another run's newest checkpoint": (_bring(f"{CHECKPOINTS}/{name_of(8)}"), True, {}),
    "another run's adapter": (_bring(ADAPTER), True, {}),
    "no record, not resumed": (_forget, False, {}),
    "no record, resumed": (_forget, True, {}),
}
"""What is done to my folder, whether ``--resume`` is given, and the settings that differ."""


def contents(folder: Path) -> dict[str, str]:
    """Every file's SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@preloaded
def foreign(count: int, seed: int) -> Iterator[Case]:
    """Each way to meet another run's folder: refused, and not a byte of it changed."""
    del seed
    with small.bench() as bench:
        share(bench.settings("any"))
        theirs = Rehearsal(bench, "theirs", **LENGTHS | {"seed": 1})
        mine = Rehearsal(bench, **LENGTHS)
        kept = Path(shutil.copytree(mine.stage.folder, bench.folder / "kept"))
        for name, (harm, resume, changes) in [*FOREIGN.items()][:count]:
            mine.reset(kept)
            harm(mine.output, theirs.output)
            before = contents(mine.output)
            ended = mine.start(resume=resume, **changes).wait()
            wrong = "" if before == contents(mine.output) else "its files were changed"
            if ended.code != 2 or "  -> " not in ended.said or "Traceback" in ended.said:
                wrong = f"exit code {ended.code}: {ended.said[-500:]}"
            yield Case(name, not wrong, wrong)


SUITE = Suite(
    name="concurrent starts",
    promise="of several starts in one folder exactly one runs; the others name it",
    cases=cases,
    full=20,
    quick=4,
    baseline=defined_in("exams.soak.plain_runs", "starts"),
)
FOREIGN_SUITE = Suite(
    name="foreign folders",
    promise="a folder that holds another run is refused and not written into",
    cases=foreign,
    full=len(FOREIGN),
    quick=len(FOREIGN),
    baseline=defined_in("exams.soak.plain_runs", "foreign"),
)
