"""Tokens per second and memory of a step: ours, transformers with PEFT, and TRL.

python -m benchmarks.speed [--shape 160m] [--vocabulary 32000] [--family llama]
    [--lengths lognormal] [--rounds 3] [--batches 1] [--only "NAME; NAME"] [--output FILE.json]

All contestants train rank-16 adapters on every linear layer of the same random model in NF4, on
the same batches of 4 samples with the same learned tokens, in one process and in turn, so that
what else runs on the machine falls on all of them. Lengths are log-normal (mean some 240, at
most 1024; 40 % learned), or those of real rows (gsm8k, alpaca: encoded and masked as a run
does it, by Llama 2's tokenizer), or fixed. The first round warms up and is not counted. Speeds
are medians over rounds of real (never padding) tokens per second of wall clock, and of processor
time per core; ratios are medians of each round's own. Peak memory is that of the process above
what it held before the step (Linux), or of torch's allocator on a GPU. Each round also measures
the machine's own matrix products: "limit" is the share of what they would allow. Results are
written after every round: a run that is stopped keeps what it has. It needs `pip install trl`.
On a GPU, Unsloth takes part from a process of its own where it is installed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.bars import case_of, line, peak, verdicts
from benchmarks.batches import BATCH, LENGTHS, collated, make_samples, sizes
from benchmarks.contestants import ALL, COMPILED, contestants
from benchmarks.elsewhere import UNSLOTH, Elsewhere, absent
from benchmarks.field import Field
from benchmarks.limit import product_rate, useful_operations
from benchmarks.measuring import Batch, Seen, as_json, measure, spread, surroundings, write
from benchmarks.models import FAMILIES, SHAPES, config_of, make_model
from qlora_core.training.losses import learned_tokens

Measured = Callable[[], Seen]


@dataclass
class Found:
    """What a run has measured so far."""

    batches: list[Batch]
    rounds: dict[str, list[Seen]]
    absent: dict[str, str]
    rates: list[float] = field(default_factory=list)
    """Operations per second of a matrix product, a value per round."""

    @property
    def tokens(self) -> int:
        """Real ones of one run."""
        return sum(sizes(self.batches))

    @property
    def learned(self) -> int:
        """Labels of one run."""
        return sum(map(learned_tokens, self.batches))


def entered(
    place: Field, wanted: list[str], batches: list[Batch]
) -> tuple[dict[str, Measured], Elsewhere | None]:
    """Everyone who can run, ready to be measured."""
    runs = contestants(place, wanted)
    ready: dict[str, Measured] = {n: partial(measure, run, batches) for n, run in runs.items()}
    others = [name for name in wanted if name in UNSLOTH]
    if not others:
        return ready, None
    if reason := absent(place.device):
        place.absent |= dict.fromkeys(others, reason)
        return ready, None
    child = Elsewhere(place.folder, batches)
    return ready | {name: partial(child.measure, name) for name in others}, child


def interleave(
    runs: Mapping[str, Measured], rounds: int, found: Found, rate: Callable[[], float],
    after: Callable[[], None],
) -> None:  # fmt: skip
    """Everyone in turn, ``rounds`` times after one round that warms up."""
    for number in range(rounds + 1):
        rated = rate()
        for name, run in runs.items():
            seen = run()
            print(f"round {number} {name}: {seen.wall:.2f} s", flush=True)
            if number:
                found.rounds[name].append(seen)
        if number:
            found.rates.append(rated)
            after()


def shares(given: argparse.Namespace, found: Found) -> dict[str, float]:
    """Contestant -> share of the machine's own limit, the median over rounds."""
    work = useful_operations(
        SHAPES[given.shape], given.vocabulary, sizes(found.batches), found.learned
    )
    return {
        name: median(
            work / seen.wall / rate for seen, rate in zip(rounds, found.rates, strict=True)
        )
        for name, rounds in found.rounds.items()
    }


def summary(found: Found, share: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """A row per contestant; ratios are over the first one."""
    first = next(iter(found.rounds))
    base = peak(found.rounds[first])
    table = {}
    for name, rounds in found.rounds.items():
        pairs = list(zip(found.rounds[first], rounds, strict=True))
        highest = peak(rounds)
        walls, cores = (
            [a.wall / b.wall for a, b in pairs],
            [a.processor / b.processor for a, b in pairs],
        )
        ratios = spread(walls)
        table[name] = {
            "tokens_per_second": found.tokens / median(seen.wall for seen in rounds),
            "tokens_per_core_second": found.tokens / median(seen.processor for seen in rounds),
            "ratio": ratios["median"], "ratio_lowest": ratios["lowest"],
            "ratio_highest": ratios["highest"], "ratio_processor": median(cores),
            "share_of_limit": share[name],
            "peak_bytes": highest,
            "peak_ratio": highest / base if highest is not None and base else None,
            "rounds": as_json(rounds),
        }  # fmt: skip
    return table


def report(given: argparse.Namespace, found: Found) -> dict[str, Any]:
    """All of a run: what was asked, what was measured, on what, and which bars are met."""
    share = shares(given, found)
    rate = median(found.rates)
    work = useful_operations(
        SHAPES[given.shape], given.vocabulary, sizes(found.batches), found.learned
    )
    asked = ("shape", "vocabulary", "family", "lengths", "batches")
    return {name: getattr(given, name) for name in asked} | {
        "samples": given.batches * BATCH,
        "tokens": found.tokens,
        "padded_tokens": sum(batch["input_ids"].numel() for batch in found.batches),
        "learned_tokens": found.learned,
        "rounds": len(found.rates),
        "on": surroundings(),
        "limit": {
            "operations_per_token": work / found.tokens,
            "operations_per_second": rate,
            "tokens_per_second": found.tokens * rate / work,
        },
        "contestants": summary(found, share),
        "absent": found.absent,
        "bars": verdicts(found.rounds, case_of(given.shape, given.vocabulary, given.family), share),
    }


def print_table(result: Mapping[str, Any]) -> None:
    """The table and the bars, for people."""
    print(f"{'':36}{'tok/s':>8}{'wall':>8}{'cpu':>8}{'limit':>7}{'peak':>12}")
    for name, row in result["contestants"].items():
        highest = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.0f} MiB"
        part = "" if row["peak_ratio"] is None else f"{row['peak_ratio']:6.2f}"
        print(
            f"{name:36}{row['tokens_per_second']:8.0f}{row['ratio']:7.2f}x"
            f"{row['ratio_processor']:7.2f}x{row['share_of_limit']:7.0%}{highest}{part}"
        )
    limit = result["limit"]
    print(f"limit: {limit['tokens_per_second']:.0f} tokens/s of "
          f"{limit['operations_per_token'] / 1e6:.0f} million operations at "
          f"{limit['operations_per_second'] / 1e9:.0f} G/s")  # fmt: skip
    for name, reason in result["absent"].items():
        print(f"absent: {name}: {reason}")
    for verdict in result["bars"]:
        print(line(verdict))


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--lengths", choices=LENGTHS, default="lognormal")
    parser.add_argument("--length", type=int, default=1024, help="tokens, with --lengths fixed")
    parser.add_argument("--only", help="contestants by name, separated by ; (the first is 1.00)")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(given)


def chosen(given: argparse.Namespace) -> list[str]:
    """Names of the contestants that are asked for; an unknown one ends the program."""
    everyone = [*ALL, *(UNSLOTH if torch.cuda.is_available() else ())]
    names = [n.strip() for n in given.only.split(";")] if given.only else everyone
    if unknown := set(names) - {*ALL, *UNSLOTH}:
        raise SystemExit(f"no contestant {', '.join(sorted(unknown))}; there are {'; '.join(ALL)}")
    return [name for name in names if not (given.no_compile and name in COMPILED)]


def run(given: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Make the model and the batches in ``place``, run everyone, keep and return the results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config_of(given.shape, given.vocabulary, given.family)
    folder = Field(make_model(place, config, device), device)
    count = given.batches * BATCH
    samples = make_samples(given.lengths, count, given.vocabulary, given.length)
    batches = collated(samples, folder.tokenizer, device)
    runs, child = entered(folder, chosen(given), batches)
    found = Found(batches, {name: [] for name in runs}, folder.absent)

    def keep() -> None:
        if given.output:
            write(given.output, report(given, found))

    try:
        rate = partial(product_rate, SHAPES[given.shape], device)
        interleave(runs, given.rounds, found, rate, keep)
    finally:
        if child:
            child.close()
    return report(given, found)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as place:
        print_table(run(given, Path(place)))


if __name__ == "__main__":
    main()
