"""Runs killed without warning, again and again, end as if they had not been."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from exams.soak import plain, small
from exams.soak.faults import KILL, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite

AGAIN = 0.5
"""How probable it is that a resumed run is killed, too."""


def saving(calls: list[str]) -> list[int]:
    """The numbers of the calls that belong to saves."""
    return [
        number
        for number, call in enumerate(calls, 1)
        if "/checkpoints" in call or "/adapter" in call
    ]


def _killed(run: Rehearsal, dice: random.Random, *, in_save: bool) -> str:
    """Start or resume the run and kill it; says where."""
    if in_save:
        number = dice.choice(saving(run.calls))
        died = run.start(Fault(KILL, number)).wait()
        return f"at call {number}" + ("" if died.code == -9 else " (it ended before)")
    share_ = dice.random()
    running = run.start()
    time.sleep(share_ * run.seconds)
    running.send(9)
    running.wait()
    return f"after {share_:.0%} of its time"


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """Every second run is killed inside a save; half of all resumed ones are killed again."""
    with small.bench() as bench:
        changes: dict[str, Any] = {
            "max_steps": 6,
            "save_every": 2,
            "eval_split": 0.2,
            "eval_every": 3,
        }
        share(bench.settings("any", **changes))
        run = Rehearsal(bench, **changes)
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            run.reset()
            where = [_killed(run, dice, in_save=number % 2 == 0)]
            while dice.random() < AGAIN:
                where.append(_killed(run, dice, in_save=dice.random() < AGAIN))
            wrong = run.wrong(run.finish())
            yield Case(f"{number}: killed {', then '.join(where)}", not wrong, wrong)


SUITE = Suite(
    name="kills",
    promise="killed at random, half of the time inside a save, every run ends identical to the bit",
    cases=cases,
    baseline=plain.kills,
    full=300,
    quick=20,
)
