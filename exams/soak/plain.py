"""The same harm done to plain transformers and PEFT: the proof that the suites can fail.

The script is the one of their documentation: NF4, ``get_peft_model``, ``Trainer``, resumed from
the last checkpoint where there is one, and the adapter saved at the end.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from exams.soak import faults, small
from exams.soak.faults import KILL, Fault
from exams.soak.rehearsal import empty, read_calls
from exams.soak.stage import Ended, Running, Stage, preloaded
from exams.suite import Case

SCENES: dict[str, dict[str, Any]] = {
    "fresh folder": {},
    "rotation": {"save_total_limit": 1},
}


class Plain:
    """A run of the Trainer, made undisturbed once. The base model is loaded once, too."""

    def __init__(self, bench: small.Bench, **arguments: Any) -> None:
        self.stage = Stage(bench.folder / "case")
        self.output = self.stage.folder / "run"
        self.shadow = bench.folder / "shadow"
        self.arguments = {"max_steps": 4, "save_steps": 2, **arguments}
        self.model = base_of(bench.model)
        self.reset()
        began, log = time.monotonic(), bench.folder / "calls"
        ended = self.start(Fault(log=log)).wait()
        self.seconds = time.monotonic() - began
        self.calls = read_calls(log)
        self.expected = self.digest()
        if ended.code or not self.expected:
            raise RuntimeError(f"undisturbed it fails: {ended.said[-500:]}")

    def reset(self) -> None:
        """An empty folder."""
        empty(self.stage.folder)

    def start(self, fault: Fault | None = None, **changes: Any) -> Running:
        """The script, forked, with these of its arguments changed."""
        return self.stage.fork(lambda _: self._train({**self.arguments, **changes}), fault)

    def cut_power(self, fault: Fault) -> Ended:
        """Train until ``fault`` kills it; only what was synced is left."""
        with faults.all_synced(self.stage.folder, self.shadow):
            ended = self.start(fault._replace(shadow=self.shadow)).wait()
            faults.lose_unsynced(self.stage.folder, self.shadow)
        return ended

    def digest(self) -> str:
        """SHA-256 of the final adapter; empty where there is none."""
        path = self.output / "final" / "adapter_model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    def wrong(self, ended: Ended) -> str:
        """How the run has failed; empty: it ended as the undisturbed one."""
        if ended.code:
            return f"exit code {ended.code}: {(ended.said.strip().splitlines() or [''])[-1][:200]}"
        return "" if self.digest() == self.expected else "exit code 0, and another adapter"

    def _train(self, arguments: Mapping[str, Any]) -> int:
        trainer = trainer_of(self.model, self.output, **arguments)
        there = self.output.is_dir() and get_last_checkpoint(str(self.output)) is not None
        trainer.train(resume_from_checkpoint=there or None)
        trainer.save_model(str(self.output / "final"))
        return 0


def trainer_of(
    base: Any,
    output: Path,
    *,
    rows: Any = None,
    eval_rows: Any = None,
    lora: Mapping[str, Any] | None = None,
    **given: Any,
) -> Trainer:
    """The documentation's script over ``base``; ``given`` are the Trainer's arguments."""
    set_seed(given.get("seed", 0))
    adapters = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}
    defaults: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return Trainer(
        model=get_peft_model(
            prepare_model_for_kbit_training(base), LoraConfig(**adapters | dict(lora or {}))
        ),
        args=TrainingArguments(**defaults | given),
        train_dataset=samples() if rows is None else rows,
        eval_dataset=eval_rows,
    )


def base_of(folder: Path, *, four_bit: bool = True) -> Any:
    """The base model in NF4, or as it is."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config if four_bit else None, dtype=torch.float32
    )


def samples(seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of random bytes."""
    dice = random.Random(seed)
    rows = [[dice.randrange(256) for _ in range(24)] for _ in range(small.ROWS)]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in rows]


@preloaded
def crash_points(count: int, seed: int) -> Iterator[Case]:
    """A random choice of ``count`` points: killed there, or the power cut there."""
    with small.bench() as bench:
        runs = {name: Plain(bench, **arguments) for name, arguments in SCENES.items()}
        points = [
            (name, cut, number)
            for name, run in runs.items()
            for cut in (False, True)
            for number in range(1, len(run.calls) + 1)
        ]
        random.Random(seed).shuffle(points)
        for name, cut, number in points[:count]:
            run, fault = runs[name], Fault(KILL, number)
            run.reset()
            died = run.cut_power(fault) if cut else run.start(fault).wait()
            wrong = run.wrong(run.start().wait()) if died.code == -9 else f"did not die: {died}"
            how = "power cut" if cut else "killed"
            yield Case(f"{name}, {how} at call {number}: {run.calls[number - 1]}", not wrong, wrong)


@preloaded
def kills(count: int, seed: int) -> Iterator[Case]:
    """Each run is killed once: every second one inside a save."""
    with small.bench() as bench:
        run = Plain(bench, max_steps=6)
        saves = [number for number, call in enumerate(run.calls, 1) if "/checkpoint-" in call]
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            run.reset()
            if in_save := number % 2 == 0:
                run.start(Fault(KILL, dice.choice(saves))).wait()
            else:
                running = run.start()
                time.sleep(dice.random() * run.seconds)
                running.send(9)
                running.wait()
            wrong = run.wrong(run.start().wait())
            yield Case(f"{number}: killed {'in a save' if in_save else ''}", not wrong, wrong)
