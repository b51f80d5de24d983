"""Runs killed without warning, again and again, end as if they had not been."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from exams.soak import plain, small
from exams.soak.faults import KILL, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import PATIENCE, ROOT, Ended, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite

AGAIN = 0.5
"""How probable it is that a resumed run is killed, too."""
IN_SAVES = 3
"""At least one kill for so many cases must have come inside a save."""
FORKED = 50
"""For so many runs forked from the warm process, one is a command of its own."""


def saving(calls: list[str]) -> list[int]:
    """The numbers of the calls that belong to saves."""
    return [
        number
        for number, call in enumerate(calls, 1)
        if "/checkpoints" in call or "/adapter" in call
    ]


def _killed(run: Rehearsal, dice: random.Random, kills: Counter[str], *, in_save: bool) -> str:
    """Start or resume the run and kill it; says where, and counts it."""
    if in_save:
        number = dice.choice(saving(run.calls))
        died = run.start(Fault(KILL, number)).wait()
        kills["kills inside saves"] += died.code == -9
        where = f"at call {number}"
    else:
        share_ = dice.random()
        running = run.start()
        time.sleep(share_ * run.seconds)
        running.send(9)
        died = running.wait()
        where = f"after {share_:.0%} of its time"
    kills["kills"] += died.code == -9
    return where + ("" if died.code == -9 else " (it ended before)")


class Command:
    """The run as `qlora-core train` in a process that shares nothing: imports and loading, too."""

    def __init__(self, run: Rehearsal) -> None:
        self.run = run
        self.settings = run.stage.folder.with_name("settings of a command.yaml")
        given = dataclasses.replace(run.settings, resume=True)
        self.settings.write_text(json.dumps(dataclasses.asdict(given)))
        run.reset()
        began = time.monotonic()
        run.require(self.start())
        self.seconds = time.monotonic() - began

    def start(self, kill_after: float = PATIENCE) -> Ended:
        """From the first import on; killed after so many seconds, unless it has ended."""
        command = [sys.executable, "-m", "qlora_core.cli.main", "train", "--config"]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        process = subprocess.Popen(
            [*command, str(self.settings)], env=environment, cwd=ROOT, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        return Ended(process.returncode, said, calls=0, saved=0)

    def case(self, number: int, dice: random.Random, kills: Counter[str]) -> Case:
        """Killed at any time from its start on, once or twice, then let finish."""
        self.run.reset()
        where: list[str] = []
        while not where or dice.random() < AGAIN:
            share_ = dice.random()
            died = self.start(share_ * self.seconds)
            kills["kills of commands"] += died.code == -9
            kills["kills"] += died.code == -9
            where.append(f"after {share_:.0%} of its time")
        wrong = self.run.wrong(self.start())
        return Case(f"command {number}: killed {', then '.join(where)}", not wrong, wrong)


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """Every second run is killed inside a save; half of all resumed ones are killed again."""
    kills: Counter[str] = Counter()
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
            where = [_killed(run, dice, kills, in_save=number % 2 == 0)]
            while dice.random() < AGAIN:
                where.append(_killed(run, dice, kills, in_save=dice.random() < AGAIN))
            wrong = run.wrong(run.finish())
            yield Case(f"{number}: killed {', then '.join(where)}", not wrong, wrong)
        if count >= FORKED:
            command = Command(run)
            for number in range(count // FORKED):
                yield command.case(number, random.Random(f"{seed} command {number}"), kills)
    enough = kills["kills inside saves"] * IN_SAVES >= count
    yield Case("in all", enough, f"{dict(kills)}", {name: float(n) for name, n in kills.items()})


SUITE = Suite(
    name="kills",
    promise="killed at random, half of the time inside a save, every run ends identical to the bit",
    cases=cases,
    baseline=plain.kills,
    full=300,
    quick=20,
)
