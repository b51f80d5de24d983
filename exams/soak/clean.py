"""Sound runs of many families raise no alarm."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from typing import Any

import torch

from exams.soak import small
from exams.soak.numeric import DTYPES
from exams.suite import Case, Suite
from qlora_core.errors import QloraError
from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import installed

ALARMS = ("skipped-step", "loss-spike", "diverged", "evaluation-not-finite")


def cases(count: int, seed: int) -> Iterator[Case]:
    """Sound runs of many families: nothing is skipped, warned of or stopped."""
    with small.bench() as bench:
        families = [name for name, f in installed().architectures.items() if _suits(f.example)]
        random.Random(seed).shuffle(families)
        made = 0
        for number, name in enumerate(families):
            if made == count:
                return
            case = _clean(bench, name, number)
            if case is not None:
                made += 1
                yield case


def _suits(example: Any) -> bool:
    return "vocab_size" in example and "auto_map" not in example


def _clean(bench: small.Bench, family: str, number: int) -> Case | None:
    """60 steps at an ordinary rate; None for a family that cannot be built here."""
    folder, output = bench.folder / "family", bench.folder / "run"
    try:
        example = dict(installed().architectures[family].example) | {"vocab_size": 320}
        torch.manual_seed(number)
        try:
            model: Any = build_skeleton(example, device="cpu")
            for parameter in model.parameters():  # an untrained model holds zeros, none other does
                parameter.data.add_(0.02 * torch.randn_like(parameter))
            model.to(torch.bfloat16)
            model.save_pretrained(folder)
        except (QloraError, ValueError, RuntimeError, NotImplementedError):
            return None
        small.byte_tokenizer().save_pretrained(folder)
        rates = {"learning_rate": 10.0 ** -(2 + number % 3), "compute_dtype": DTYPES[number % 3]}
        run = small.run(
            bench.settings("run", model=str(folder), max_steps=60, save_every=60, dropout=0.0,
                           max_length=64, architecture=family, **rates)
        )  # fmt: skip
        alarms = [n["message"] for n in run.record["notices"] if n["code"] in ALARMS]
        return Case(f"{family} {rates}", not alarms, str(alarms))
    except QloraError as error:
        return Case(f"{family}, seed {number}", False, error.problem)
    finally:
        for path in (folder, output):
            shutil.rmtree(path, ignore_errors=True)


SUITE = Suite(
    name="clean",
    promise="sound runs raise no alarm",
    cases=cases,
    full=20,
    quick=2,
)
