"""A run that is stopped at a random step and resumed is the run that was not stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import traceback
from collections.abc import Iterator
from itertools import count as counting
from pathlib import Path
from typing import Any

import torch

from exams.forks import fork
from exams.soak import small
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import BadInput, TrainingStopped
from qlora_core.registry.hooks import hookimpl
from qlora_core.training.optimizers import runs_8bit
from qlora_core.training.schema import TrainSettings

EVALUATION: dict[str, Any] = {"eval_split": 0.3, "eval_every": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "strong dropout": {"dropout": 0.5},
    "accumulation 1": {"gradient_accumulation": 1},
    "accumulation 5": {"gradient_accumulation": 5, "batch_size": 1},
    "linear schedule": {"schedule": "linear", "warmup": 0.3},
    "constant schedule with warm-up": {"schedule": "constant", "warmup": 3},
    "cosine schedule without warm-up": {"warmup": 0.0},
    "early stop": EVALUATION | {
        "early_stop": 2, "eval_every": 1, "learning_rate": 0.3, "max_steps": 24,
    },
    "evaluation in between": EVALUATION,
    "plain road (padded)": {"plain": True},
    "rank-stabilised scale": {"rslora": True},
    "DoRA with warm-up": {"dora": True, "warmup": 0.5},
    "8-bit optimizer": {"optimizer": "adamw_8bit", "rank": 64},
    "paged optimizer": {"optimizer": "paged_adamw_32bit"},
    "three epochs": {"max_steps": None, "epochs": 3.0, "save_every": 4},
    "half an epoch": {"max_steps": None, "epochs": 0.5, "save_every": 1, "batch_size": 1},
    "last partial batch": {"batch_size": 7, "gradient_accumulation": 1},
    "best checkpoint": EVALUATION | {"final_adapter": "best", "learning_rate": 0.1, "keep": 1},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "float16 with loss scaling": {"compute_dtype": "float16"},
    "recomputed activations": {"gradient_checkpointing": "on"},
    "weight decay, no clipping": {"weight_decay": 0.1, "max_gradient_norm": 0.0},
    "fp4, attention only": {"quantize": "fp4", "targets": "attention"},
    "16-bit base": {"quantize": "none"},
    "rows cut short": {"max_length": 16},
}  # fmt: skip


class Death:
    """An observer that ends its process, unwarned, when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def qlora_step_finished(self, step: dict[str, Any]) -> None:
        """Dies after its step."""
        if step["step"] == self.step and "loss" in step:
            os._exit(9)


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every option in turn with another seed each round, stopped by a signal or by death."""
    with small.bench() as bench:
        made = 0
        for round_ in counting(seed):
            for name, changes in OPTIONS.items():
                if made >= count:
                    return
                yield _case(bench, name, changes, round_)
                made += 1


def _case(bench: small.Bench, name: str, changes: dict[str, Any], seed: int) -> Case:
    title = f"{name}, seed {seed}"
    straight = bench.settings("straight", seed=seed, **changes)
    broken = bench.settings("broken", seed=seed, **changes)
    try:
        try:
            steps = int(small.run(straight).record["steps"])
        except BadInput as refusal:
            allowed = _may_be_refused(straight)
            return Case(title, allowed, f"refused: {refusal.problem}")
        stops = _stops(random.Random(f"{seed} {name}"), steps)
        for stop, by_signal in stops:
            _stop(broken, stop, by_signal=by_signal)
        small.resumed(broken)
        found = small.difference(small.trace(straight.output), small.trace(broken.output))
        where = ", ".join(f"{'signal' if s else 'death'} after step {n}" for n, s in stops)
        return Case(title, not found, f"{where} of {steps}: {found or 'identical'}")
    finally:
        for settings in (straight, broken):
            shutil.rmtree(settings.output, ignore_errors=True)


def _may_be_refused(settings: TrainSettings) -> bool:
    """Paged optimizers need CUDA; 8-bit ones on a CPU need a newer bitsandbytes."""
    paged = settings.optimizer.startswith("paged_")
    return paged or (settings.optimizer == "adamw_8bit" and not runs_8bit(torch.device("cpu")))


def _stops(dice: random.Random, steps: int) -> list[tuple[int, bool]]:
    """One or two steps before the last one, each ended by a signal (True) or by death."""
    places = sorted(dice.sample(range(1, steps), min(dice.randint(1, 2), steps - 1)))
    return [(place, dice.random() < 0.5) for place in places]


def _stop(settings: TrainSettings, step: int, *, by_signal: bool) -> None:
    """Train, from where the run is, up to ``step``."""
    go_on = Path(settings.output).exists()
    given = dataclasses.replace(settings, resume=go_on)
    if by_signal:
        with contextlib.suppress(TrainingStopped):
            small.run(given, small.Stopper(step))
        return
    child = fork()
    if not child:
        try:
            small.run(given, Death(step))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 9:
        raise RuntimeError(f"the child ended with {code} instead of dying after step {step}")


SUITE = Suite(
    name="resume",
    promise="stopped anywhere and resumed, a run's adapter and metrics are identical to the bit",
    cases=cases,
    full=2 * len(OPTIONS),
    quick=6,
    baseline=defined_in("exams.soak.plain_runs", "resume"),
)
