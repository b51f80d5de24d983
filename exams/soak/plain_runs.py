"""Runs of plain transformers and PEFT that are stopped, started twice, or on a bad disk.

Judged mildly: whatever a run says, passed is an end with the right exit code and, once it is
started again, the result of the run that nothing happened to.
"""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count as counting
from typing import Any

from transformers import EarlyStoppingCallback

from exams.soak import small
from exams.soak.disks import ERRORS, Disk, mounted
from exams.soak.faults import FAIL, FOR_GOOD, Fault
from exams.soak.locks import STARTS, contents
from exams.soak.plain import Plain, base_of, samples
from exams.soak.plain_faults import Act, trained
from exams.soak.signals import KINDS, signalled
from exams.soak.stage import Ended, preloaded
from exams.suite import Case

EVALUATED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "strong dropout": {"lora": {"lora_dropout": 0.5}},
    "accumulation 1": {"gradient_accumulation_steps": 1},
    "accumulation 5": {"gradient_accumulation_steps": 5, "per_device_train_batch_size": 1},
    "linear schedule": {"lr_scheduler_type": "linear", "warmup_steps": 3},
    "constant schedule with warm-up": {
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3,
    },
    "cosine schedule without warm-up": {"lr_scheduler_type": "cosine"},
    "early stop": EVALUATED | {
        "eval_steps": 1, "save_steps": 1, "learning_rate": 0.3, "max_steps": 24,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    },
    "evaluation in between": EVALUATED,
    "rank-stabilised scale": {"lora": {"use_rslora": True}},
    "DoRA": {"lora": {"use_dora": True}},
    "three epochs": {"max_steps": -1, "num_train_epochs": 3, "save_steps": 4},
    "half an epoch": {
        "max_steps": -1, "num_train_epochs": 0.5, "save_steps": 1,
        "per_device_train_batch_size": 1,
    },
    "last partial batch": {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 1},
    "best checkpoint": EVALUATED | {
        "load_best_model_at_end": True, "learning_rate": 0.1, "save_total_limit": 1,
    },
    "bfloat16": {"bf16": True},
    "recomputed activations": {"gradient_checkpointing": True},
    "weight decay, no clipping": {"weight_decay": 0.1, "max_grad_norm": 0.0},
    "16-bit base": {"four_bit": False},
}  # fmt: skip
"""Those options of `resume` that the Trainer has, by its own names."""


def resume(count: int, seed: int) -> Iterator[Case]:
    """Stopped after a random step and resumed from the last checkpoint before it."""
    with small.bench() as bench:
        made = 0
        for round_ in counting(seed):
            for name, changes in OPTIONS.items():
                if made >= min(count, 2 * len(OPTIONS)):
                    return
                yield _resumed(bench, name, {**changes, "seed": round_})
                made += 1


def _resumed(bench: small.Bench, name: str, changes: dict[str, Any]) -> Case:
    four_bit = changes.pop("four_bit", True)
    straight, broken = bench.folder / "straight", bench.folder / "broken"

    def go(output: Any, stop: int = 0, **given: Any) -> tuple[str, int]:
        steps = Act(stop=stop)
        others = [EarlyStoppingCallback(2)] if name == "early stop" else []
        evaluated = {"eval_rows": samples(1)} if "eval_strategy" in changes else {}
        base = base_of(bench.model, four_bit=four_bit)
        made = trained(base, output, steps, others=others, **changes | evaluated | given)
        return made, steps.seen

    try:
        expected, steps = go(straight)
        stop = random.Random(f"{changes['seed']} {name}").randrange(1, steps)
        go(broken, stop)
        any_saved = any(broken.glob("checkpoint-*"))
        shutil.rmtree(broken / "final")
        found, _ = go(broken, resume=any_saved)
        said = "identical" if found == expected else "another adapter"
        return Case(f"{name}, seed {changes['seed']}", found == expected,
                    f"stopped after step {stop} of {steps}: {said}")  # fmt: skip
    finally:
        for output in (straight, broken):
            shutil.rmtree(output, ignore_errors=True)


@preloaded
def signals(count: int, seed: int) -> Iterator[Case]:
    """The same signals at the same kinds of moments."""
    with small.bench() as bench:
        run = Plain(bench, max_steps=10, save_steps=4)
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            signum = (signal.SIGINT, signal.SIGTERM)[number // len(KINDS) % 2]
            run.reset()
            stopped, _ = signalled(run, random.Random(f"{seed} {number}"), kind, signum)
            right = stopped.shell_code in (0, 128 + signum)
            wrong = _in_the_end(run, stopped) if right else f"exit code {stopped.code}"
            yield Case(f"{number}: {signum.name}, {kind}", not wrong, wrong)


@preloaded
def starts(count: int, seed: int) -> Iterator[Case]:
    """In an empty folder; passed is one run."""
    del seed
    with small.bench() as bench:
        run = Plain(bench, max_steps=16, save_steps=2)
        for number in range(count):
            run.reset()
            ended = [one.wait() for one in [run.start() for _ in range(STARTS)]]
            ran = sum(one.code == 0 for one in ended)
            wrong = f"exit codes {[one.code for one in ended]}" if ran != 1 else ""
            yield Case(f"{number}: {STARTS} starts at once", not wrong, wrong)


@preloaded
def foreign(count: int, seed: int) -> Iterator[Case]:
    """The script in the folder of a finished run; passed is an error, and not a byte changed."""
    del seed
    changes: dict[str, dict[str, Any]] = {
        "the same settings": {}, "another seed": {"seed": 1}, "a longer run": {"max_steps": 12},
        "a shorter run": {"max_steps": 2}, "another rank": {"lora": {"r": 8}},
    }  # fmt: skip
    with small.bench() as bench:
        run = Plain(bench)
        for name, changed in [*changes.items()][:count]:
            run.reset()
            run.start().wait()
            before = contents(run.output)
            ended = run.start(**changed).wait()
            same = contents(run.output) == before
            said = f"exit code {ended.code}, files {'kept' if same else 'changed'}"
            yield Case(name, bool(ended.code) and same, said)


@preloaded
def disks(count: int, seed: int) -> Iterator[Case]:
    """Full and read-only disks where one can be mounted, else errors of single calls."""
    with small.bench() as bench, mounted(bench.folder / "case") as disk:
        run = Plain(bench, max_steps=6, save_steps=2)
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            run.reset()
            if disk is not None and number % 2 == 0:
                name, harm = [*HARMS.items()][number // 2 % len(HARMS)]
                ended = harm(run, disk, dice)
                disk.repair()
            else:
                error, for_good = dice.choice(ERRORS), number % 4 == 1
                name = f"{errno.errorcode[error]} {'for good' if for_good else 'once'}"
                place = dice.randint(1, len(run.calls))
                ended = run.start(Fault(FAIL, place, error, FOR_GOOD if for_good else 0)).wait()
            wrong = _in_the_end(run, ended)
            yield Case(f"{number}: {name}", not wrong, wrong)


def _before(prepare: Callable[[Disk], None]) -> Callable[[Plain, Disk, random.Random], Ended]:
    def harm(run: Plain, disk: Disk, _: random.Random) -> Ended:
        prepare(disk)
        return run.start().wait()

    return harm


def _meanwhile(
    spoil: Callable[[Disk, random.Random], None],
) -> Callable[[Plain, Disk, random.Random], Ended]:
    def harm(run: Plain, disk: Disk, dice: random.Random) -> Ended:
        running = run.start()
        time.sleep(dice.random() * run.seconds / 2)
        spoil(disk, dice)
        return running.wait()

    return harm


HARMS: dict[str, Callable[[Plain, Disk, random.Random], Ended]] = {
    "full at the start": _before(lambda disk: disk.leave(0)),
    "full in the middle": _meanwhile(lambda disk, dice: disk.leave(dice.randrange(2**20))),
    "no inodes": _before(lambda disk: disk.leave_inodes(0)),
    "few inodes": _before(lambda disk: disk.leave_inodes(12)),
    "read-only": _before(lambda disk: disk.option("ro")),
    "read-only in the middle": _meanwhile(lambda disk, _: disk.make_read_only()),
}


def _in_the_end(run: Plain, ended: Ended) -> str:
    """In what its result is not the undisturbed one; where it failed: once it is started again."""
    return run.wrong(ended if ended.code == 0 else run.start().wait())
