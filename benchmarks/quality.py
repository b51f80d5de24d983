"""Does QLoRA match full fine-tuning? The paper's question, asked of the embedded base model.

python benchmarks/quality.py [--seeds 4] [--steps 60] [--output results/quality.json]

Four methods, the same rows, order, steps and schedule; several seeds each, mean and spread:
full fine-tuning, LoRA on the 16-bit base, QLoRA on NF4, QLoRA on FP4. Judged on the demo's
held-out questions: loss over the answers' tokens, and exact answers. Each method's learning rate
is the best of three on a seed that is not reported. This is a toy of a few million parameters:
it shows that the machinery does what it claims, not what happens at 65 billion.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import qlora_base
import torch
from qlora_base.evaluate import chat_accuracy
from qlora_base.questions import read_questions

from qlora_core import TrainSettings, attach, collator, detect
from qlora_core.data.prepare import prepare_data
from qlora_core.data.tokenizer import load_tokenizer
from qlora_core.models.loader import load_model
from qlora_core.training.batches import Batches
from qlora_core.training.evaluate import evaluate
from qlora_core.training.loop import Loop
from qlora_core.training.optimizers import build_optimizer, build_schedule
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes

METHODS: dict[str, tuple[str | None, bool, tuple[float, ...]]] = {
    "full fine-tuning, 16-bit": (None, False, (1e-4, 3e-4, 1e-3)),
    "LoRA, 16-bit base": (None, True, (3e-4, 1e-3, 3e-3)),
    "QLoRA, NF4 base": ("nf4", True, (3e-4, 1e-3, 3e-3)),
    "QLoRA, FP4 base": ("fp4", True, (3e-4, 1e-3, 3e-3)),
}


def trained(
    method: str, rate: float, settings: TrainSettings, rows: list[Any], collate: Any
) -> tuple[Any, Precision]:
    """The model after ``settings.max_steps`` steps. Full fine-tuning keeps fp32 weights."""
    quantize, adapters, _ = METHODS[method]
    dtype = torch.bfloat16 if adapters else torch.float32
    loaded = load_model(settings.model, quantize=quantize, compute_dtype=dtype)
    torch.manual_seed(settings.seed)
    if adapters:
        model = attach(loaded.model, rank=settings.rank)
    else:
        model = loaded.model.requires_grad_(True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(settings, weights, loaded.device, rate)
    schedule = build_schedule(optimizer, name="cosine", warmup=0.05, total=settings.max_steps or 0)
    precision = Precision(loaded.device, torch.bfloat16)
    loop = Loop(
        model=model, optimizer=optimizer, schedule=schedule, precision=precision, seed=settings.seed
    )
    batches = Batches(
        samples=rows, collate=collate, batch_size=settings.batch_size, accumulation=1,
        seed=settings.seed,
    )  # fmt: skip
    for _ in loop.steps(batches.groups(1, settings.max_steps or 0)):
        pass
    return model, precision


def judged(
    method: str, rate: float, settings: TrainSettings, data: Any, tokenizer: Any
) -> dict[str, Any]:
    collate = collator(tokenizer)
    began = time.perf_counter()
    model, precision = trained(method, rate, settings, data.train, collate)
    seconds = time.perf_counter() - began
    loss = evaluate(
        model, data.evaluation, collate, batch_size=64, precision=precision, processes=Processes()
    ).loss
    with precision.autocast():
        answers = chat_accuracy(model, tokenizer, read_questions(qlora_base.HELD_OUT_ROWS))
    return {
        "rate": rate,
        "seed": settings.seed,
        "loss": loss,
        "accuracy": answers.accuracy,
        "seconds": seconds,
    }


def spread(values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = TrainSettings(
        model=str(qlora_base.MODEL), data=str(qlora_base.TRAINING_ROWS), output="unused",
        eval_data=str(qlora_base.HELD_OUT_ROWS), max_steps=arguments.steps, batch_size=16,
        gradient_accumulation=1, rank=16, max_length=128,
    )  # fmt: skip
    family = detect(settings.model).architecture
    tokenizer = load_tokenizer(settings.model, family)
    data = prepare_data(settings, tokenizer, family)
    results: dict[str, Any] = {}
    for method, (_, _, rates) in METHODS.items():
        tuning = [judged(method, r, replace(settings, seed=1000), data, tokenizer) for r in rates]
        best = min(tuning, key=lambda row: row["loss"])["rate"]
        runs = [
            judged(method, best, replace(settings, seed=seed), data, tokenizer)
            for seed in range(arguments.seeds)
        ]
        results[method] = {
            "rate": best,
            "loss": spread([r["loss"] for r in runs]),
            "accuracy": spread([r["accuracy"] for r in runs]),
            "seconds": statistics.median(r["seconds"] for r in runs),
            "runs": runs,
            "tuning": tuning,
        }
        row = results[method]
        print(
            f"{method:<26} rate {best:g}  loss {row['loss']['mean']:.4f} ± {row['loss']['sd']:.4f}"
            f"  accuracy {row['accuracy']['mean']:.1%} ± {row['accuracy']['sd']:.1%}"
            f"  {row['seconds']:.0f} s",
            flush=True,
        )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
