"""For an hour and more: runs of several families, harmed at random until they have finished."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exams.soak import small
from exams.soak.faults import FAIL, FOR_GOOD, KILL, RAISE, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import Ended, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite
from qlora_core.registry.detect import installed

FAMILIES = ("llama", "mixtral", "gpt2", "mamba", "gpt_neox", "qwen", "lfm2", "bloom")
"""Dense, experts, Conv1D, a state space, parallel blocks, normed heads, convolutions, ALiBi."""
EVALUATED: dict[str, Any] = {"eval_split": 0.2, "eval_every": 2}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"save_every": 2},
    {"save_every": 1, "keep": 1, "gradient_accumulation": 1},
    {"save_every": 3, "final_adapter": "best"},
)
"""What each family's runs are made of, beside six steps with dropout and an evaluation."""
FULL, HOUR = 1_000, 3_600.0
"""With so many runs asked for it goes on for at least so many seconds."""
HARMS = 3
"""At most so many times a run is harmed; then it is let finish."""


@dataclasses.dataclass(frozen=True)
class FamilyBench(small.Bench):
    """A bench whose model is the smallest of a family."""

    family: str

    def make(self) -> None:
        """Write the model, its tokenizer and the rows."""
        example = installed().architectures[self.family].example
        values = {k: v for k, v in example.items() if k != "architectures"}
        tokens = {"vocab_size": 512, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
        torch.manual_seed(0)
        config = AutoConfig.for_model(**{**values, **tokens})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(self.model)
        small.byte_tokenizer().save_pretrained(self.model)
        small.make_rows(self.data)


class Soaked:
    """One variant of a family's run, rehearsed when it is first needed."""

    def __init__(self, family: str, folder: Path) -> None:
        self.bench = FamilyBench(folder / family, family)
        self.bench.folder.mkdir()
        self.bench.make()
        share(self.bench.settings("any", **EVALUATED))
        self.runs: dict[int, Rehearsal] = {}

    def run(self, variant: int) -> Rehearsal:
        """The variant's run, its folder empty."""
        if variant not in self.runs:
            changes = {"max_steps": 6, **EVALUATED, **VARIANTS[variant]}
            self.runs[variant] = Rehearsal(self.bench, f"variant {variant}", **changes)
        self.runs[variant].reset()
        return self.runs[variant]


def _any_call(run: Rehearsal, dice: random.Random) -> int:
    return dice.randint(1, len(run.calls))


def _after_a_while(run: Rehearsal, dice: random.Random, *signals: int) -> Ended:
    running = run.start()
    time.sleep(dice.random() * run.seconds)
    for signum in signals:
        running.send(signum)
        time.sleep(dice.random() * 0.05)
    return running.wait()


def _full_disk(run: Rehearsal, dice: random.Random) -> Ended:
    error = dice.choice((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
    more = dice.choice((0, FOR_GOOD))
    return run.start(Fault(FAIL, _any_call(run, dice), error, more)).wait()


def _power_cut(run: Rehearsal, dice: random.Random) -> Ended:
    names_kept = dice.random() < 0.5
    return run.cut_power(Fault(KILL, _any_call(run, dice)), names_kept=names_kept)


def _signal_in_a_call(run: Rehearsal, dice: random.Random) -> Ended:
    signum, again = dice.choice((signal.SIGINT, signal.SIGTERM)), dice.choice((0, 1, 9))
    return run.start(Fault(RAISE, _any_call(run, dice), signum, again)).wait()


HARM: dict[str, Callable[[Rehearsal, random.Random], Ended]] = {
    "killed at a call": lambda run, dice: run.start(Fault(KILL, _any_call(run, dice))).wait(),
    "killed after a while": lambda run, dice: _after_a_while(run, dice, signal.SIGKILL),
    "power cut": _power_cut,
    "disk failed": _full_disk,
    "stopped by SIGTERM": lambda run, dice: _after_a_while(run, dice, signal.SIGTERM),
    "stopped by SIGINT twice": lambda run, dice: _after_a_while(run, dice, *[signal.SIGINT] * 2),
    "signal in a call": _signal_in_a_call,
}


def _harmed(run: Rehearsal, dice: random.Random) -> tuple[list[str], str]:
    """Harm the run some times, then let it finish. Returns what was done, and what is wrong."""
    done: list[str] = []
    while len(done) < HARMS and (not done or dice.random() < 0.6):
        name = dice.choice([*HARM])
        done.append(name)
        ended = HARM[name](run, dice)
        if ended.code == 0 and (wrong := run.wrong(ended)):
            return done, wrong
        if "Traceback" in ended.said:
            return done, f"a traceback: {ended.said[-600:]}"
    return done, run.wrong(run.finish())


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """``count`` runs, each of another family than the one before; ``FULL`` of them: an hour."""
    began, done = time.monotonic(), Counter[str]()
    with small.bench() as bench:
        families: dict[str, Soaked] = {}
        for number in itertools.count():
            hour = count >= FULL and time.monotonic() - began < HOUR
            if number >= count and not hour:
                break
            dice = random.Random(f"{seed} {number}")
            family = FAMILIES[number % len(FAMILIES)]
            if family not in families:
                families[family] = Soaked(family, bench.folder)
            variant = number // len(FAMILIES) % len(VARIANTS)
            harms, wrong = _harmed(families[family].run(variant), dice)
            done.update(harms)
            name = f"{number}: {family}, variant {variant}: {', '.join(harms)}"
            yield Case(name, not wrong, wrong)
    missing = sorted(HARM.keys() - done.keys()) if count >= FULL else []
    figures = {harm: float(times) for harm, times in sorted(done.items())}
    yield Case("every harm was done", not missing, f"{missing}", figures)


SUITE = Suite(
    name="long soak",
    promise="runs of eight families, killed, cut off, stopped and out of disk: all end identical",
    cases=cases,
    full=FULL,
    quick=6,
)
