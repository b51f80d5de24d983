"""Pictures of the results, as SVG.

python -m benchmarks.plot [--results benchmarks/results] [--output docs/images]

Reads what speed, slopes, convergence and loading left and writes a picture for each file that is
there; a file that is missing is named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES
from benchmarks.svg import COLOURS, OURS, PEER, Series, bars, lines

HERE = Path(__file__).resolve().parent
Result = Mapping[str, Any]


def speed(result: Result) -> str:
    """Tokens per second, wall clock, of everyone in one interleaved run."""
    rows = [
        (name, row["tokens_per_second"], f"{row['tokens_per_second']:.0f}  ({row['ratio']:.2f}x)")
        for name, row in result["contestants"].items()
    ]
    title = (
        f"Tokens per second: {result['shape']} {result['family']}, vocabulary "
        f"{result['vocabulary']:,}, {result['lengths']} lengths"
    )
    where = result["on"]["gpu"] or f"{result['on']['threads']} CPU threads"
    padding = 1 - result["tokens"] / result["padded_tokens"]
    note = (
        f"{where}; NF4, rank 16, batches of 4; {padding:.0%} of the padded batches is padding; "
        f"median of {result['rounds']} interleaved rounds, wall clock"
    )
    return bars(title, rows, note)


def slopes(result: Result) -> str:
    """Peak memory over tokens of one sample, both logarithmic."""
    curves = result["curves"].get("whole") or next(iter(result["curves"].values()))
    series = []
    left = {whose: iter(colours) for whose, colours in COLOURS.items()}
    for name, curve in curves.items():
        slope = curve["bytes_per_token"]
        words = name if slope is None else f"{name} ({slope / 1024:.0f} KiB)"
        points = [(tokens, peak / 2**20) for tokens, peak in curve["points"] if peak > 0]
        series.append(Series(words, points, next(left[name.startswith("ours")], PEER)))
    shape = SHAPES[result["shape"]]
    title = (
        f"Peak memory of one step: Llama of {shape.layers} layers, {shape.hidden} wide, "
        f"vocabulary {result['vocabulary']:,}"
    )
    return lines(
        title, series, "tokens in the step", "MiB (in brackets: per token)", logarithmic=True
    )


def convergence(result: Result) -> str:
    """Held-out loss of every seed, ours over plain, of the first data set."""
    name, found = next(iter(result["data"].items()))
    series = []
    for pair in found["pairs"]:
        series.append(Series(f"plain, seed {pair['seed']}", pair["plain"]["held_out"], PEER))
        series.append(
            Series(f"ours, seed {pair['seed']}", pair["ours"]["held_out"], OURS, dashed=True)
        )
    title = f"Loss on held-out rows: {name}, {result['model']}"
    return lines(title, series, "optimizer step", "cross-entropy per learned token")


def loading(result: Result) -> str:
    """Processor seconds of each way to load, with its peak of memory."""
    rows = [
        (way, row["cpu_seconds"], f"{row['cpu_seconds']:.1f} s, peak {row['peak_mib']:,.0f} MiB")
        for way, row in result["medians"].items()
    ]
    return bars(f"Loading to NF4: {result['shape']} Llama, processor time", rows)


PICTURES: dict[str, Callable[[Result], str]] = {
    "speed": speed, "speed-vocabulary": speed, "speed-1b": speed, "speed-gsm8k": speed,
    "speed-alpaca": speed, "speed-neox": speed, "slopes": slopes, "convergence": convergence,
    "loading": loading,
}  # fmt: skip
"""Name of the results file and of the picture -> how it is drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "images")
    given = parser.parse_args()
    draw_all(given.results, given.output)


def draw_all(results: Path, output: Path) -> list[Path]:
    """A picture for every known results file in ``results``; their paths."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for name, draw in PICTURES.items():
        source = results / f"{name}.json"
        if not source.is_file():
            print(f"no {source}: not drawn")
            continue
        target = output / f"{name}.svg"
        target.write_text(draw(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
        made.append(target)
        print(target)
    return made


if __name__ == "__main__":
    main()
