"""How the memory of a step grows with its tokens: the slope, and how straight the line is.

python -m benchmarks.slopes [--shape m0] [--tokens 256,512,1024,2048,4096,8192]
    [--layouts whole,packed] [--only "NAME; NAME"] [--seconds 120] [--output FILE.json]

A step per contestant and number of tokens: as one sample (whole), and as samples of 256 tokens
(packed: what can pack does, what pads has nothing to pad). 40 % of the tokens are learned. What a
process allocates once, at its first step of a size, is not the step's: a step of less than 60
seconds is taken twice, and the second counts. Peaks are what the process (on a GPU torch's
allocator) holds above what it held before the step. A line is fitted by least squares: the slope
in bytes per token, and the largest distance of a point from the line as a share of the highest
peak. A contestant whose step took more than ``--seconds``, or whose next would take more memory
than is free, is not asked for more tokens, and says so.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil
import torch

from benchmarks.batches import made_sample, placed
from benchmarks.contestants import ALL, contestants
from benchmarks.field import Field
from benchmarks.measuring import Batch, Contestant, measure, surroundings, write
from benchmarks.models import SHAPES, config_of, make_model
from qlora_core.data.collate import collator

SAMPLE, AGAIN = 256, 60.0
LAYOUTS = ("whole", "packed")
ASKED = (
    "ours, recomputing", "ours", "transformers flattened, recomputing", "transformers flattened",
    "TRL at its best", "TRL default",
)  # fmt: skip


@dataclass
class Curve:
    """One contestant in one layout."""

    points: list[tuple[int, float]] = field(default_factory=list)
    """Tokens and peak bytes."""
    seconds: list[float] = field(default_factory=list)
    """Of each point's step, wall clock."""
    stopped: str = ""
    """Why there is no further point."""

    def to_dict(self) -> dict[str, Any]:
        """Points and line, as kept."""
        return {**self.__dict__, **fitted(self.points)}


def fitted(points: Sequence[tuple[int, float]]) -> dict[str, float | None]:
    """The least-squares line through (tokens, bytes), and how far the farthest point is off it."""
    if len(points) < 2:
        return {"bytes_per_token": None, "bytes_at_zero": None, "largest_residual": None}
    tokens, peaks = zip(*points, strict=True)
    slope, start = linear_regression(tokens, peaks)
    off = max(abs(peak - start - slope * count) for count, peak in points)
    highest = max(abs(peak) for peak in peaks)
    residual = off / highest if highest else None
    return {"bytes_per_token": slope, "bytes_at_zero": start, "largest_residual": residual}


def batch_of(tokens: int, layout: str, vocabulary: int, tokenizer: Any) -> Batch:
    """``tokens`` in one sample, or in samples of 256."""
    length = tokens if layout == "whole" else min(SAMPLE, tokens)
    drawn = random.Random(tokens)
    samples = [made_sample(length, vocabulary, drawn) for _ in range(tokens // length)]
    return collator(tokenizer)(samples)


def grow(run: Contestant, batches: Mapping[int, Batch], seconds: float) -> Curve:
    """Measure one contestant at more and more tokens; a failure or a long step ends the curve."""
    curve = Curve()
    try:
        for tokens, batch in batches.items():
            curve.stopped = too_much(curve, tokens, seconds, free_bytes())
            if curve.stopped:
                break
            seen = measure(run, [batch])
            if seen.wall < AGAIN:
                seen = measure(run, [batch])
            print(f"  {tokens} tokens: {_mib(seen.peak)} in {seen.wall:.1f} s", flush=True)
            if seen.peak is None:
                raise RuntimeError("the peak of memory cannot be read here")
            curve.points.append((tokens, seen.peak))
            curve.seconds.append(seen.wall)
    except (RuntimeError, MemoryError) as error:
        curve.stopped = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if curve.stopped:
        print(f"  stopped: {curve.stopped}", flush=True)
    return curve


def too_much(curve: Curve, tokens: int, seconds: float, free: float) -> str:
    """Why ``tokens`` are not asked for, going by the last point; empty where they are."""
    if not curve.points:
        return ""
    last, peak = curve.points[-1]
    if curve.seconds[-1] > seconds:
        return f"{last} tokens took {curve.seconds[-1]:.0f} s (limit {seconds:.0f} s)"
    wanted = peak * tokens / last
    if wanted > free:
        return f"{tokens} tokens would take some {_mib(wanted)}, and {_mib(free)} are free"
    return ""


def free_bytes() -> float:
    """Memory that a step may take: nine tenths of what is free. A GPU refuses by itself."""
    return math.inf if torch.cuda.is_available() else 0.9 * psutil.virtual_memory().available


def _mib(peak: float | None) -> str:
    return "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB"


def run(given: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Everyone in every layout; results are kept after each curve."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config_of(given.shape, given.vocabulary)
    meeting = Field(make_model(place, config, device), device)
    wanted = [name.strip() for name in given.only.split(";")] if given.only else list(ASKED)
    if unknown := set(wanted) - set(ALL):
        raise SystemExit(f"no contestant {', '.join(unknown)}; there are {'; '.join(ALL)}")
    counts = sorted(int(count) for count in given.tokens.split(","))
    result: dict[str, Any] = {
        "shape": given.shape, "vocabulary": given.vocabulary, "tokens": counts, "curves": {},
    }  # fmt: skip
    for name, contestant in contestants(meeting, wanted).items():
        for layout in given.layouts.split(","):
            print(f"{name}, {layout}", flush=True)
            made = {
                count: placed(batch_of(count, layout, given.vocabulary, meeting.tokenizer), device)
                for count in counts
            }
            curve = grow(contestant, made, given.seconds)
            result["curves"].setdefault(layout, {})[name] = curve.to_dict()
            result |= {"absent": meeting.absent, "on": surroundings()}
            if given.output:
                write(given.output, result)
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """Slopes, for people."""
    for layout, curves in result["curves"].items():
        print(f"\n{layout:36}{'KiB/token':>10}{'off line':>10}{'most tokens':>12}{'peak':>12}")
        for name, curve in curves.items():
            if curve["bytes_per_token"] is None:
                print(f"{name:36} too few points: {curve['stopped']}")
                continue
            tokens, peak = curve["points"][-1]
            off = curve["largest_residual"] or 0.0
            print(
                f"{name:36}{curve['bytes_per_token'] / 1024:10.1f}{off:10.1%}"
                f"{tokens:12,}{peak / 2**20:8,.0f} MiB"
            )


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slopes")
    parser.add_argument("--shape", choices=SHAPES, default="m0")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tokens", default="256,512,1024,2048,4096,8192")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--only", help="contestants by name, separated by ;")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path)
    return parser.parse_args(given)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as place:
        print_table(run(given, Path(place)))


if __name__ == "__main__":
    main()
