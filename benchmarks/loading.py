"""From a 16-bit checkpoint to NF4, and from an NF4 folder: time and memory beside transformers'.

python -m benchmarks.loading [--shape 1b] [--rounds 3] [--output benchmarks/results/loading.json]

Every load is a process of its own, libraries imported before the clock starts; rounds are
interleaved. Peak and final are resident memory over what the process held before loading;
transformers' peak counts the pages of the mapped file, as a container's limit does; anonymous is
what remains of the final without them. The checkpoint is one file, as models of a billion
parameters are published.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bars import LOADING, Bar, judged, line
from benchmarks.measuring import resident, surroundings, write

SHAPES = ("toy", "160m", "1b", "8b")
WAYS = ("transformers", "ours", "transformers reopening", "ours reopening")
Figures = dict[str, float]
Medians = dict[str, Figures]


def checkpoint(shape: str, folder: Path) -> None:
    """Random bf16 weights of a Llama with a vocabulary of 32,000 (toy: 512), and a tokenizer."""
    from benchmarks.models import config_of, make_tokenizer, write_checkpoint

    config = config_of(shape, 512 if shape == "toy" else 32000)
    write_checkpoint(config, folder, whole=True)
    make_tokenizer(folder)


def load_once(way: str, path: str) -> Figures:
    """One load in this process."""
    import bitsandbytes  # noqa: F401
    import torch
    import transformers
    import transformers.models.llama.modeling_llama

    from qlora_core.models.loader import load_model

    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    extra = {} if way.endswith("reopening") else {"quantization_config": settings}
    before, anonymous = held("VmRSS"), held("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    cpu, wall = time.process_time(), time.perf_counter()
    if way.startswith("ours"):
        kept = load_model(path, compute_dtype=torch.bfloat16, device="cpu").model
    else:
        kept = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, **extra
        )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert kept.num_parameters() > 0
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "peak_mib": held("VmHWM") - before,
        "final_mib": held("VmRSS") - before,
        "final_anonymous_mib": held("RssAnon") - anonymous,
    }


def held(field: str) -> float:
    """MiB of a field of this process's status. Raises RuntimeError where there is none."""
    found = resident(field)
    if found is None:
        raise RuntimeError("memory is read from /proc/self/status, which is not here")
    return found / 2**20


def measure(shape: str, rounds: int) -> dict[str, list[Figures]]:
    """What each way took in each round."""
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        base, stored = Path(name) / "base", Path(name) / "nf4"
        checkpoint(shape, base)
        command = [sys.executable, "-m", "qlora_core.cli.main", "quantize", str(base)]
        subprocess.run([*command, "--output", str(stored), "--no-check"], check=True)
        for _ in range(rounds):
            for way in WAYS:
                path = stored if way.endswith("reopening") else base
                found[way].append(child(way, path))
                print(way, {k: round(v, 2) for k, v in found[way][-1].items()}, flush=True)
    return found


def child(way: str, path: Path) -> Figures:
    """One load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading", "--once", way, str(path)]
    text = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ).stdout
    figures: Figures = json.loads(text.splitlines()[-1])
    return figures


def medians_of(rounds: dict[str, list[Figures]]) -> Medians:
    """The median of each figure for each way."""
    return {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in rounds.items()
    }


def verdicts(medians: Medians) -> list[dict[str, Any]]:
    """The bars of loading, judged."""
    return [judged(bar, _value(bar, medians)) for bar in LOADING]


def _value(bar: Bar, medians: Medians) -> float:
    key = {"cpu": "cpu_seconds", "peak": "peak_mib", "cpu times": "cpu_seconds",
           "wall times": "wall_seconds"}[bar.figure]  # fmt: skip
    ours, theirs = medians[bar.contestant][key], medians[bar.over][key]
    return theirs / ours if bar.figure.endswith("times") else ours / theirs


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    if options.once:
        print(json.dumps(load_once(*options.once)))
        return
    rounds = measure(options.shape, options.rounds)
    medians = medians_of(rounds)
    found = verdicts(medians) if options.shape == "1b" else []  # the bars are set for this size
    for way, figures in medians.items():
        print(f"{way:<24}", "  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    for verdict in found:
        print(line(verdict))
    if options.output:
        kept = {"shape": options.shape, "rounds": rounds, "medians": medians, "bars": found,
                "on": surroundings()}  # fmt: skip
        write(options.output, kept)


if __name__ == "__main__":
    main()
