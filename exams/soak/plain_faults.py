"""Changed settings, damaged files and broken numbers on plain transformers and PEFT."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from exams.soak import damage, numeric, small
from exams.soak.plain import base_of, samples, trainer_of
from exams.suite import Case

ROUND: dict[str, Any] = {"max_steps": 8, "save_steps": 2}
Strike = Callable[[Any, Any], object]
"""``(model, optimizer)``"""


class Act(TrainerCallback):  # type: ignore[misc]
    """Does something just before an optimizer step, and stops after one."""

    def __init__(self, strike: Strike | None = None, step: int = 0, stop: int = 0) -> None:
        self.strike, self.step, self.stop = strike, step, stop
        self.seen = 0
        """Steps that the run has taken, those before it was resumed among them."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """The strike; the Trainer counts a step when it is done."""
        if self.strike and state.global_step + 1 == self.step:
            self.strike(given["model"], given["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """The stop."""
        self.seen = state.global_step
        control.should_training_stop = (
            control.should_training_stop or state.global_step == self.stop
        )


def trained(
    base: Any,
    output: Path,
    act: Act | None = None,
    *,
    resume: bool = False,
    others: Sequence[TrainerCallback] = (),
    **given: Any,
) -> str:
    """Run the script; the SHA-256 of its adapter."""
    trainer = trainer_of(base, output, **ROUND | given)
    for callback in (*others, act):
        if callback:
            trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model(str(output / "final"))
    file = output / "final" / "adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Stopped:
    """A run that was stopped after its seventh step, and the end it should come to."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench, self.output = bench, bench.folder / "run"
        self.expected = trained(base_of(bench.model), bench.folder / "straight")
        trained(base_of(bench.model), self.output, Act(stop=7))
        shutil.rmtree(self.output / "final")
        self.kept = shutil.copytree(self.output, bench.folder / "kept")

    def resumed(self, name: str, base: Any = None, **given: Any) -> Case:
        """Refused, or the same end: anything else is silent."""
        try:
            found = trained(base or base_of(self.bench.model), self.output, resume=True, **given)
        except Exception as error:
            return Case(name, True, f"{type(error).__name__}: {error}")
        same = found == self.expected
        return Case(name, same, "identical" if same else "exit code 0, and another adapter")

    def fresh(self) -> None:
        """The folder as it was when the run was stopped."""
        shutil.rmtree(self.output)
        shutil.copytree(self.kept, self.output)


def damaged(count: int, seed: int) -> Iterator[Case]:
    """Each harm to the newest checkpoint; passed is the end that the run should come to."""
    with small.bench() as bench:
        run = Stopped(bench)
        newest = "checkpoint-6"
        for file, what, harm in damage.planned(run.kept / newest, count, seed):
            run.fresh()
            harm(run.output / newest / file)
            case = run.resumed(f"{file} {what}")
            passed = case.detail == "identical"
            yield Case(case.name, passed, case.detail.splitlines()[0][:200])


def changed(count: int, seed: int) -> Iterator[Case]:
    """Other settings, rows and base weights."""
    with small.bench() as bench:
        run = Stopped(bench)
        other = bench.folder / "other model"
        small.make_model(other, seed=1)
        rows = samples()
        changes: dict[str, dict[str, Any]] = {
            "more steps": {"max_steps": 9}, "seed": {"seed": 1}, "rank": {"lora": {"r": 8}},
            "alpha": {"lora": {"lora_alpha": 3}}, "dropout": {"lora": {"lora_dropout": 0.2}},
            "targets": {"lora": {"target_modules": ["q_proj", "v_proj"]}},
            "rslora": {"lora": {"use_rslora": True}}, "learning rate": {"learning_rate": 2e-2},
            "schedule": {"lr_scheduler_type": "cosine"}, "warm-up": {"warmup_steps": 4},
            "optimizer": {"optim": "adafactor"}, "weight decay": {"weight_decay": 0.1},
            "gradient clipping": {"max_grad_norm": 0.1},
            "batch size": {"per_device_train_batch_size": 4},
            "accumulation": {"gradient_accumulation_steps": 1},
            "other rows": {"rows": samples(1)}, "a row more": {"rows": [*rows, rows[0]]},
            "a row less": {"rows": rows[1:]}, "rows in another order": {"rows": rows[::-1]},
            "another base": {"base": base_of(other)},
            "no 4-bit at all": {"base": base_of(bench.model, four_bit=False)},
        }  # fmt: skip
        names = list(changes)
        random.Random(seed).shuffle(names)
        for name in names[:count]:
            run.fresh()
            yield run.resumed(name, **changes[name])


def broken(count: int, seed: int) -> Iterator[Case]:
    """Passed is an error, or a result without a number that is not finite."""
    trials = _strikes()
    names = list(trials)
    random.Random(seed).shuffle(names)
    with small.bench() as bench:
        for name in names[:count]:
            output = bench.folder / "run"
            strike, given = trials[name]
            try:
                trained(base_of(bench.model), output, Act(strike, 3), **given)
                found = numeric.not_finite(output)
                yield Case(name, not found, f"exit code 0; not finite: {found}")
            except Exception as error:
                yield Case(name, True, f"{type(error).__name__}: {error}")
            finally:
                shutil.rmtree(output, ignore_errors=True)


def _strikes() -> dict[str, tuple[Strike, dict[str, Any]]]:
    def gradient(value: float) -> Strike:
        def strike(model: Any, optimizer: Any) -> None:  # noqa: ARG001
            next(p.grad for p in model.parameters() if p.grad is not None)[0, 0] = value

        return strike

    def weight(value: float) -> Strike:
        def strike(model: Any, optimizer: Any) -> None:  # noqa: ARG001
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = value

        return strike

    def moment(value: float) -> Strike:
        def strike(model: Any, optimizer: Any) -> None:  # noqa: ARG001
            state = next(iter(getattr(optimizer, "optimizer", optimizer).state.values()))
            state["exp_avg"].view(-1)[0] = value

        return strike

    def nothing(model: Any, optimizer: Any) -> None:
        """The settings do it."""

    trials: dict[str, tuple[Strike, dict[str, Any]]] = {}
    for word, value in numeric.VALUES.items():
        for accumulation in (1, 4):
            given = {"gradient_accumulation_steps": accumulation}
            name = f"{word} in a gradient, accumulation {accumulation}"
            trials[name] = (gradient(value), given)
        trials[f"{word} in a gradient, bfloat16"] = (gradient(value), {"bf16": True})
        trials[f"{word} in a weight"] = (weight(value), {})
        trials[f"{word} in the optimizer"] = (moment(value), {})
    trials["learning rate 1e30"] = (nothing, {"learning_rate": 1e30})
    trials["alpha 1e30"] = (nothing, {"lora": {"lora_alpha": 1e30}, "learning_rate": 1.0})
    trials["learning rate NaN"] = (nothing, {"learning_rate": math.nan})
    return trials
