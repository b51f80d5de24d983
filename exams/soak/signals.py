"""SIGINT and SIGTERM at any moment: a stopped run says so; resumed, it ends as if not stopped."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from exams.soak import small
from exams.soak.faults import RAISE, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import Ended, Running, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite, defined_in

AT_ONCE = 2.0
"""Seconds within which a second signal must have ended the run."""
KINDS = ("one at a random time", "one inside a call", "two at random times", "two inside calls")


class Startable(Protocol):
    """A run that was made undisturbed once, ours or that of a baseline."""

    calls: list[str]
    seconds: float

    def start(self, fault: Fault | None = None) -> Running:
        """Start it, or go on with it."""


def signalled(run: Startable, dice: random.Random, kind: str, signum: int) -> tuple[Ended, float]:
    """The run as it ended, and the seconds from the last signal to its end."""
    again = dice.randint(1, 25) if kind.startswith("two") else 0
    if "call" in kind:
        fault = Fault(RAISE, dice.randint(1, len(run.calls)), signum, again)
        return run.start(fault).wait(), 0.0
    running = run.start()
    while not running.cells.ready:
        time.sleep(0.001)
    time.sleep(dice.random() * run.seconds)
    running.send(signum)
    if again:
        time.sleep(dice.random() * 0.1)
        running.send(signum)
    last = time.monotonic()
    return running.wait(), time.monotonic() - last


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """Each kind in turn, with each signal in turn; at least half of them must stop their run."""
    with small.bench() as bench:
        changes: dict[str, Any] = {
            "max_steps": 10,
            "save_every": 4,
            "eval_split": 0.2,
            "eval_every": 5,
        }
        share(bench.settings("any", **changes))
        run = Rehearsal(bench, **changes)
        ends: Counter[str] = Counter()
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            signum = (signal.SIGINT, signal.SIGTERM)[number // len(KINDS) % 2]
            run.reset()
            dice = random.Random(f"{seed} {number}")
            stopped, seconds = signalled(run, dice, kind, signum)
            ends["stopped" if stopped.code else "finished before"] += 1
            wrong = _wrong(run, stopped, signum, seconds if kind.startswith("two at") else 0.0)
            yield Case(f"{number}: {signum.name}, {kind}", not wrong, wrong, {"seconds": seconds})
    enough = 2 * ends["stopped"] >= count
    yield Case("in all", enough, f"{dict(ends)}", {end: float(n) for end, n in ends.items()})


def _wrong(run: Rehearsal, stopped: Ended, signum: int, seconds: float) -> str:
    if stopped.code == 0:  # the signal came after the last step's end, or never
        return run.wrong(stopped)
    if stopped.shell_code != 128 + signum:
        return f"exit code {stopped.code}: {stopped.said[-500:]}"
    if seconds > AT_ONCE:
        return f"it went on for {seconds:.1f} s after the second signal"
    return run.wrong(run.finish())


SUITE = Suite(
    name="signals",
    promise="a stopped run exits with 130 or 143, never 0, and resumed it ends identical",
    cases=cases,
    full=60,
    quick=12,
    baseline=defined_in("exams.soak.plain_runs", "signals"),
)
