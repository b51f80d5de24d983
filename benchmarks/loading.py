"""From a 16-bit checkpoint to NF4, and from an NF4 folder: time and memory beside transformers'.

python benchmarks/loading.py [--shape 1.1b] [--rounds 3] [--json benchmarks/results/loading.json]

Every load is a process of its own, libraries imported before the clock starts; rounds are
interleaved. Peak and final are resident memory over what the process held before loading;
transformers' peak counts the pages of the mapped file, as a container's limit does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "160m": (1024, 2816, 8, 16, 8),
    "1.1b": (2048, 5632, 22, 32, 4),
}
"""Hidden size, MLP size, layers, heads, key-value heads; vocabulary 32,000."""
WAYS = ("transformers", "ours", "transformers reopening", "ours reopening")


def checkpoint(shape: str, folder: Path) -> None:
    """Random bf16 weights, written layer by layer as one file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, shared = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, vocab_size=32000,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def load_once(way: str, path: str) -> dict[str, float]:
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
    before = resident("VmRSS")
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
        "peak_mib": resident("VmHWM") - before,
        "final_mib": resident("VmRSS") - before,
    }


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(shape: str, rounds: int) -> dict[str, dict[str, float]]:
    """The median of each figure for each way."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
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
    return {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in found.items()
    }


def child(way: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--once", way, str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(text.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.once:
        print(json.dumps(load_once(*options.once)))
        return
    medians = measure(options.shape, options.rounds)
    theirs, ours = medians["transformers"], medians["ours"]
    ratios = {
        "cpu time over transformers": ours["cpu_seconds"] / theirs["cpu_seconds"],
        "peak over transformers": ours["peak_mib"] / theirs["peak_mib"],
        "reopening, times faster than transformers' first load (cpu)": theirs["cpu_seconds"]
        / medians["ours reopening"]["cpu_seconds"],
    }
    for way, figures in medians.items():
        print(f"{way:<24}", "  ".join(f"{key} {value:,.1f}" for key, value in figures.items()))
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    if options.json:
        from exams.suite import surroundings

        kept = {"shape": options.shape, "rounds": options.rounds, "medians": medians,
                "ratios": ratios, "on": surroundings()}  # fmt: skip
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
