"""Loss curves side by side: ours on its fast road, and plain PEFT on transformers.

python -m benchmarks.convergence [--data gsm8k,alpaca] [--steps 300] [--seeds 3]
    [--output FILE.json]

A real pretrained model (stories260K, found through QLORA_TEST_DATA), rank 16 on all linear layers
of its NF4 base, batches of 4, cosine from 1e-3. For every seed both sides start from the very same
adapters and see the same samples in the same order. Ours is the road that a run takes: packed
rows, layers by hand, label-only head. Plain is transformers' forward and loss on a PEFT model, on
padded batches, with transformers' schedule and torch's AdamW. Every 50 steps the loss on held-out
rows is measured by the same plain code on both. The question is whether ours strays from plain by
less than another seed does: at every evaluation and seed the distance between the two has to be
within the spread (highest minus lowest) of plain's seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import get_cosine_schedule_with_warmup

from benchmarks.batches import REAL, data_folder
from benchmarks.measuring import surroundings, write
from benchmarks.parity import RANK, RATE, lora_of, mean_loss, plain_model
from qlora_core import TrainSettings
from qlora_core.registry.detect import installed
from qlora_core.training import setup
from qlora_core.training.batches import Batches, Group
from qlora_core.training.loop import accumulate
from qlora_core.training.losses import learned_tokens
from qlora_core.training.optimizers import warmup_steps
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes
from qlora_core.training.roads import choose_road
from qlora_core.training.runs import Run, new_record

EVERY, HELD_OUT = 50, 64
Weights = dict[str, torch.Tensor]


def inputs_of(model: str, data: str, steps: int, folder: Path) -> setup.Inputs:
    """All that both sides and all seeds share: settings, samples, held-out rows."""
    settings = TrainSettings(
        model=model, data=data, output=str(folder), max_steps=steps, rank=RANK,
        learning_rate=RATE, batch_size=4, gradient_accumulation=1, max_length=384, device="cpu",
        compute_dtype="bfloat16", eval_split=0.1, sample_prompts=0, gradient_checkpointing="off",
    )  # fmt: skip
    registry = installed()
    detection = setup.detect_model(settings, registry)
    return setup.read_inputs(settings, detection, registry, side_file=None)


def adapters_of(model: Any) -> Weights:
    """A copy of every trainable parameter, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def ours(inputs: setup.Inputs, folder: Path, judge: Callable[[Any], float]) -> Iterator[Any]:
    """First the adapters as they start and the road, then (step, loss, held-out loss or None)."""
    model = setup.attach_adapters(inputs, setup.load_base(inputs))
    yield adapters_of(model)
    run = Run(folder, new_record())
    precision = Precision(inputs.device, inputs.compute_dtype)
    road = choose_road(run, model, precision, plain=False)
    yield run.record["fast_path"]
    processes = Processes(cpu=True)
    batches = dataclasses.replace(inputs.batches(processes), pack_tokens=inputs.pack_tokens)
    steps = inputs.settings.max_steps or 0
    gradients = partial(accumulate, loss=road.loss)
    loop = setup.build_loop(
        inputs, model, processes, precision, rate=RATE, total=steps, gradients=gradients
    )
    for step in loop.steps(batches.groups(1, steps)):
        yield step.step, step.loss, judge(model) if step.step % EVERY == 0 else None
        model.train()


def plain(
    inputs: setup.Inputs, batches: Batches, start: Weights, judge: Callable[[Any], float]
) -> Iterator[tuple[int, float, float | None]]:
    """The same, by transformers and PEFT alone, from the adapters ``start``."""
    model = peft.get_peft_model(
        plain_model(inputs.settings.model), lora_of(inputs.detection.targets.target_modules)
    ).train()
    begin_from(model, start)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=RATE, weight_decay=0.0)
    steps = inputs.settings.max_steps or 0
    warmup = warmup_steps(inputs.settings.warmup, steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    for group in batches.groups(1, steps):
        loss = plain_gradients(model, group)
        torch.nn.utils.clip_grad_norm_(wanted, inputs.settings.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield group.step, loss, judge(model) if group.step % EVERY == 0 else None
        model.train()


def plain_gradients(model: Any, group: Group) -> float:
    """Backward through transformers' own loss, the mean over the group's learned tokens."""
    learned = sum(map(learned_tokens, group.batches))
    total = 0.0
    for batch in group.batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch, num_items_in_batch=learned, use_cache=False).loss
        loss.backward()
        total += float(loss.detach())
    return total


def begin_from(model: Any, start: Weights) -> None:
    """Set the trainable parameters. Raises ValueError where their names differ."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if set(parameters) != set(start):
        raise ValueError(f"other adapters: {sorted(set(parameters) ^ set(start))[:4]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])


def pair(inputs: setup.Inputs, seed: int, folder: Path) -> dict[str, Any]:
    """One seed (adapters' start, order) on both sides: losses, held-out losses, seconds, road."""
    inputs = dataclasses.replace(inputs, settings=dataclasses.replace(inputs.settings, seed=seed))
    judge = partial(mean_loss, rows=inputs.data.evaluation[:HELD_OUT], collate=inputs.collate)
    began = time.perf_counter()
    fast = ours(inputs, folder, judge)
    start, road = next(fast), next(fast)
    curve = curve_of("ours", fast)
    between = time.perf_counter()
    slow = plain(inputs, inputs.batches(Processes(cpu=True)), start, judge)
    return {
        "seed": seed, "road": road, "ours": curve, "plain": curve_of("plain", slow),
        "seconds_ours": between - began, "seconds_plain": time.perf_counter() - between,
    }  # fmt: skip


def curve_of(side: str, steps: Iterator[tuple[int, float, float | None]]) -> dict[str, Any]:
    """Every training loss, and (step, held-out loss) where it was measured."""
    losses, held_out = [], []
    for step, loss, judged in steps:
        losses.append(loss)
        if judged is not None:
            held_out.append((step, judged))
            print(f"  {side} step {step}: held-out loss {judged:.4f}", flush=True)
    return {"training": losses, "held_out": held_out}


def verdict(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether ours stays closer to plain of the same seed than plain's seeds to one another."""
    curves = {side: [dict(p[side]["held_out"]) for p in pairs] for side in ("ours", "plain")}
    steps = {}
    for step in curves["plain"][0]:
        plain_, ours_ = ([c[step] for c in curves[side]] for side in ("plain", "ours"))
        apart = [abs(a - b) for a, b in zip(ours_, plain_, strict=True)]
        steps[step] = {"spread_of_plain": max(plain_) - min(plain_), "farthest_ours": max(apart)}
    within = all(s["farthest_ours"] <= s["spread_of_plain"] for s in steps.values())
    return {"steps": steps, "within": within}


def run(given: argparse.Namespace, place: Path) -> dict[str, Any]:
    """All data sets and seeds; results are kept after each pair."""
    model = str(given.model or data_folder() / "models" / "stories260K")
    result: dict[str, Any] = {"steps": given.steps, "model": Path(model).name, "data": {}}
    for name in given.data.split(","):
        pairs: list[dict[str, Any]] = []
        inputs = inputs_of(model, str(data_folder() / REAL[name]), given.steps, place)
        for seed in range(given.seeds):
            print(f"{name}, seed {seed}", flush=True)
            pairs.append(pair(inputs, seed, place / f"{name}-{seed}"))
            result["data"][name] = {"pairs": pairs, "verdict": verdict(pairs)}
            result["on"] = surroundings()
            if given.output:
                write(given.output, result)
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """Distances and verdicts, for people."""
    for name, found in result["data"].items():
        print(f"\n{name:12}{'step':>6}{'plain seeds apart':>20}{'ours from plain':>18}")
        for step, row in found["verdict"]["steps"].items():
            print(f"{step:18}{row['spread_of_plain']:20.4f}{row['farthest_ours']:18.4f}")
        words = "lies within" if found["verdict"]["within"] else "LEAVES"
        print(f"ours {words} the spread of plain's seeds")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence")
    parser.add_argument("--model", help="a folder (stories260K)")
    parser.add_argument("--data", default="gsm8k,alpaca")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return parser.parse_args(given)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as place:
        print_table(run(given, Path(place)))


if __name__ == "__main__":
    main()
