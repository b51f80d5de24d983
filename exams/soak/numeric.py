"""Numbers that break in the middle of a run: nothing that is not finite is ever saved."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from exams.soak import small
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import QloraError
from qlora_core.training import setup
from qlora_core.training.loop import Loop
from qlora_core.training.runs import RECORD

Fault = Callable[[Loop, float], float]
"""``(loop, loss)`` spoils what one step has computed and returns its loss."""
DTYPES = ("float32", "bfloat16", "float16")
VALUES = {"NaN": math.nan, "infinity": math.inf}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One fault, and what must come of it."""

    name: str
    expected: str
    """``skipped``, ``stopped`` or ``refused``; else the code of a notice of a finished run."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fault: Fault | None = None
    steps: tuple[int, ...] = ()
    """At which steps the fault strikes."""
    prepare: Callable[[Loop], None] | None = None
    """Changes the loop before its first step."""
    harm: Callable[[Path], dict[str, Any]] | None = None
    """Changes the base model, and returns settings."""


def gradient(value: float) -> Fault:
    """One element of one gradient."""

    def spoil(loop: Loop, loss: float) -> float:
        found = next(p.grad for p in loop.parameters if p.grad is not None)
        found[0, 0] = value
        return loss

    return spoil


def reported_loss(value: float) -> Fault:
    """The loss, with gradients that look sound."""
    return lambda loop, loss: value  # noqa: ARG005


def weight(value: float) -> Fault:
    """One element of an adapter."""

    def spoil(loop: Loop, loss: float) -> float:
        loop.parameters[0].data[0, 0] = value
        return loss

    return spoil


def moment(name: str, value: float) -> Fault:
    """One element of AdamW's state."""

    def spoil(loop: Loop, loss: float) -> float:
        state = loop.optimizer.state[loop.parameters[1]]
        state[name].view(-1)[0] = value
        return loss

    return spoil


def trials() -> list[Trial]:
    """All of them, in the order in which they are told."""
    made = []
    for (word, value), dtype in itertools.product(VALUES.items(), DTYPES):
        given = {"compute_dtype": dtype}
        for accumulation in (1, 4):
            name = f"{word} in a gradient, {dtype}, accumulation {accumulation}"
            settings = given | {"gradient_accumulation": accumulation}
            made.append(Trial(name, "skipped", settings, gradient(value), (3,)))
        name = f"{word} as the loss, {dtype}"
        made.append(Trial(name, "skipped", given, reported_loss(value), (2, 3, 6)))
        made.append(Trial(f"{word} in a weight, {dtype}", "stopped", given, weight(value), (4,)))
    for (word, value), name in itertools.product(VALUES.items(), ("exp_avg", "exp_avg_sq")):
        made.append(Trial(f"{word} in {name}", "stopped", {}, moment(name, value), (4,)))
    return made + _runs_of_faults() + _absurd_settings() + _dead_adapters() + _broken_bases()


def _runs_of_faults() -> list[Trial]:
    often = tuple(step for step in range(1, 40) if step % 3)
    return [
        Trial("the first step", "skipped", {}, gradient(math.nan), (1,)),
        Trial("the last step", "skipped", {}, gradient(math.inf), (8,)),
        Trial("the first two steps", "skipped", {}, gradient(math.nan), (1, 2)),
        Trial("three steps in a row", "stopped", {}, gradient(math.nan), (4, 5, 6)),
        Trial("the last three steps", "stopped", {}, gradient(math.nan), (6, 7, 8)),
        Trial("two steps of three", "stopped", {"max_steps": 40}, gradient(math.nan), often),
        Trial("worse than knowing nothing", "diverged", {}, lambda _, loss: loss + 20.0, (5,)),
        Trial("a spike", "loss-spike", {"max_steps": 40}, lambda _, loss: loss + 50.0, (36,)),
    ]


def _absurd_settings() -> list[Trial]:
    at_once = {"schedule": "constant", "warmup": 0.0}
    return [
        Trial("learning rate 1e2", "stopped", at_once | {"learning_rate": 1e2}),
        Trial("learning rate 1e6", "stopped", at_once | {"learning_rate": 1e6}),
        Trial("learning rate 1e30", "stopped", at_once | {"learning_rate": 1e30}),
        Trial("learning rate 1e6, float16", "stopped",
              at_once | {"learning_rate": 1e6, "compute_dtype": "float16"}),
        Trial("alpha 1e30", "stopped", at_once | {"alpha": 1e30, "learning_rate": 1.0}),
    ]  # fmt: skip


def _dead_adapters() -> list[Trial]:
    def zeroed(loop: Loop) -> None:
        for parameter in loop.parameters:
            parameter.data.zero_()

    def one_zeroed(loop: Loop) -> None:
        loop.parameters[6].data.zero_()

    def frozen(loop: Loop) -> None:
        for parameter in loop.parameters[:4]:
            parameter.requires_grad_(False)

    def others(loop: Loop) -> None:
        group = loop.optimizer.param_groups[0]
        group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]

    changes = {
        "every adapter zero": zeroed, "one adapter zero": one_zeroed,
        "adapters frozen": frozen, "an optimizer of other tensors": others,
    }  # fmt: skip
    return [Trial(name, "refused", prepare=change) for name, change in changes.items()]


def _broken_bases() -> list[Trial]:
    def spoilt(name: str, value: float, rows: slice) -> Callable[[Path], dict[str, Any]]:
        def harm(folder: Path) -> dict[str, Any]:
            small.make_model(folder)
            small.edit_weights(folder, name, lambda tensor: tensor[rows].fill_(value))
            return {"model": str(folder)}

        return harm

    def evaluated(folder: Path) -> dict[str, Any]:
        path = folder.with_name("evaluation.jsonl")
        path.write_text('{"question": "Z?", "answer": "Z"}\n', encoding="utf-8")
        return spoilt(embeddings, math.nan, _letter("Z"))(folder) | {"eval_data": str(path)}

    embeddings, layer = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"
    one = {"batch_size": 1, "gradient_accumulation": 1, "max_steps": 22}
    half = one | {"compute_dtype": "float16"}
    first = slice(0, 1)
    return [
        Trial("a base weight that is NaN", "stopped", harm=spoilt(layer, math.nan, first)),
        Trial("a base weight that is infinite", "stopped", harm=spoilt(layer, math.inf, first)),
        Trial("a token that is NaN", "skipped", one,
              harm=spoilt(embeddings, math.nan, _letter("7"))),
        Trial("a token that overflows float16", "skipped", half,
              harm=spoilt(embeddings, 2.0**17, _letter("7"))),
        Trial("evaluation rows that are NaN", "evaluation-not-finite", harm=evaluated),
    ]  # fmt: skip


def _letter(letter: str) -> slice:
    """The row of a letter in the embeddings."""
    number = int(small.byte_tokenizer().convert_tokens_to_ids(letter))
    return slice(number, number + 1)


@contextmanager
def struck(trial: Trial) -> Iterator[None]:
    """While entered, loops are built with the trial's fault in them."""
    build = setup.build_loop
    strike(trial)
    try:
        yield
    finally:
        setup.build_loop = build


def strike(trial: Trial) -> None:
    """From now on, loops are built in this process with the trial's fault in them."""
    build = setup.build_loop

    def faulty(*arguments: Any, **options: Any) -> Loop:
        loop = build(*arguments, **options)
        sound = loop.gradients

        def gradients(model: Any, group: Any, learned: float, precision: Any) -> float:
            loss = sound(model, group, learned, precision)
            if trial.fault is not None and group.step in trial.steps:
                return trial.fault(loop, loss)
            return loss

        loop.gradients = gradients
        if trial.prepare is not None:
            trial.prepare(loop)
        return loop

    setup.build_loop = faulty


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every fault once, in a random order."""
    chosen = trials()
    random.Random(seed).shuffle(chosen)
    with small.bench() as bench:
        for trial in chosen[:count]:
            yield tried(bench, trial)


def tried(bench: small.Bench, trial: Trial) -> Case:
    """One run with one fault."""
    output = bench.folder / "run"
    given: dict[str, Any] = {"save_every": 1, "keep": 9} | trial.settings
    if trial.harm is not None:
        given |= trial.harm(bench.folder / "broken model")
    try:
        with struck(trial):
            small.run(bench.settings("run", **given))
        error = None
    except QloraError as caught:
        error = caught
    try:
        broken = not_finite(output)
        if broken:
            return Case(trial.name, False, f"not finite: {broken}")
        return Case(trial.name, *_judged(trial, output, error))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _judged(trial: Trial, output: Path, error: QloraError | None) -> tuple[bool, str]:
    """Whether what happened is what must happen, and what happened."""
    record = json.loads((output / RECORD).read_text("utf-8"))
    notices = {notice["code"]: notice["message"] for notice in record["notices"]}
    said = f"{record['status']}: {error.problem if error else notices}"
    if trial.expected in ("stopped", "refused"):
        status = "stopped" if trial.expected == "stopped" else "failed"
        left = (output / "adapter").exists()
        return error is not None and record["status"] == status and not left, said
    code = "skipped-step" if trial.expected == "skipped" else trial.expected
    passed = error is None and record["status"] == "finished" and code in notices
    if trial.expected == "skipped":
        passed = passed and "rows.jsonl:" in notices[code] and record["skipped_steps"] > 0
        passed = passed and record["skipped_steps"] == (len(trial.steps) or record["skipped_steps"])
    return passed, said


def not_finite(folder: Path) -> list[str]:
    """Files below ``folder`` that hold a number that is none."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            values = load_file(path).values()
            sound = all(bool(torch.isfinite(tensor).all()) for tensor in values)
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text("utf-8")
            sound = not any(word in text for word in ("NaN", "Infinity"))
        else:
            continue
        if not sound:
            found.append(path.relative_to(folder).as_posix())
    return found


SUITE = Suite(
    name="numeric",
    promise="no number that is not finite is saved; the step is skipped and named, or the run ends",
    cases=cases,
    full=len(trials()),
    quick=12,
    baseline=defined_in("exams.soak.plain_faults", "broken"),
)
