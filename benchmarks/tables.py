"""The tables of docs/performance.md, from the results: python -m benchmarks.tables

What stands between ``<!-- NAME -->`` and ``<!-- end -->`` is written anew from
``benchmarks/results/NAME.json``; a test holds the page to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bars import line

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Result = dict[str, Any]


def filled(text: str) -> str:
    """``text`` with every block as the results have it. Raises OSError where one is missing."""

    def block(found: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{found[2]}.json").read_text(encoding="utf-8"))
        rows = WRITERS[found[2].partition("-")[0]](result)
        return found[1] + "\n" + "\n".join(rows) + "\n\n" + found[3]

    return BLOCK.sub(block, text)


def speed(result: Result) -> Iterator[str]:
    """Contestants by speed and memory, then the bars that they are held to."""
    tokens = f"{result['tokens']:,} tokens, {result['padded_tokens']:,} with padding"
    yield (
        f"{tokens}, {result['learned_tokens']:,} learned; {_rounds(result)} rounds; "
        f"{_machine(result)}."
    )
    yield ""
    yield "| | tokens/s | ratio (lowest to highest round) | share of the limit | peak of a step |"
    yield "|---|---|---|---|---|"
    for name, row in result["contestants"].items():
        shown = f"{row['ratio']:.2f} ({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        peak = row["peak_bytes"]
        memory = "" if peak is None else f"{peak / 2**20:,.0f} MiB ({row['peak_ratio']:.2f})"
        share = f"{row['share_of_limit']:.0%}"
        yield f"| {name} | {row['tokens_per_second']:.0f} | {shown} | {share} | {memory} |"
    yield from _bars(result)


def loading(result: Result) -> Iterator[str]:
    """Medians of each way of loading."""
    yield f"{len(result['rounds']['ours'])} rounds; {_machine(result)}."
    yield ""
    yield "| | processor seconds | seconds | peak MiB | held after it, MiB |"
    yield "|---|---|---|---|---|"
    for way, row in result["medians"].items():
        figures = (row[key] for key in ("cpu_seconds", "wall_seconds", "peak_mib", "final_mib"))
        yield f"| {way} | " + " | ".join(f"{value:,.1f}" for value in figures) + " |"
    yield from _bars(result)


def exactness(result: Result) -> Iterator[str]:
    """Gradient errors of ours and of plain PEFT, by shape; variants side by side."""
    names = [key.rpartition(", ") for key in result["shapes"]]
    variants = list(dict.fromkeys(variant for _, _, variant in names))
    yield "| | layers | " + " | ".join(f"{v}: ours, plain, ratio" for v in variants) + " |"
    yield "|---|---|" + "---|" * len(variants)
    for shape in dict.fromkeys(shape for shape, _, _ in names):
        rows = [result["shapes"][f"{shape}, {variant}"] for variant in variants]
        shown = (f"{row['ours']:.4f}, {row['plain']:.4f}, {row['ratio']:.2f}" for row in rows)
        yield f"| {shape} | {rows[0]['road']['layers']} | " + " | ".join(shown) + " |"


def slopes(result: Result) -> Iterator[str]:
    """What a token adds to the peak of a step, and how straight the line is."""
    yield f"{_machine(result)}."
    yield ""
    yield "| | rows | KiB a token | farthest from the line | most tokens | peak then |"
    yield "|---|---|---|---|---|---|"
    for layout, curves in result["curves"].items():
        for name, curve in curves.items():
            if curve["bytes_per_token"] is None:
                yield f"| {name} | {layout} | | | {curve['stopped']} | |"
                continue
            tokens, peak = curve["points"][-1]
            stopped = f" ({curve['stopped']})" if curve["stopped"] else ""
            yield (
                f"| {name} | {layout} | {curve['bytes_per_token'] / 1024:.1f} "
                f"| {curve['largest_residual']:.1%} | {tokens:,}{stopped} "
                f"| {peak / 2**20:,.0f} MiB |"
            )


def convergence(result: Result) -> Iterator[str]:
    """How far ours is from plain PEFT of the same seed, beside how far seeds are apart."""
    yield "| rows | step | plain PEFT's seeds apart by | ours from plain PEFT at most |"
    yield "|---|---|---|---|"
    for name, found in result["data"].items():
        for step, row in found["verdict"]["steps"].items():
            yield f"| {name} | {step} | {row['spread_of_plain']:.4f} | {row['farthest_ours']:.4f} |"
    for name, found in result["data"].items():
        within = "within" if found["verdict"]["within"] else "NOT within"
        yield ""
        yield f"{name}: {len(found['pairs'])} seeds, {within} the spread of seeds."


def _bars(result: Result) -> Iterator[str]:
    if result.get("bars"):
        yield ""
        yield from (f"- {line(verdict)}" for verdict in result["bars"])


def _rounds(result: Result) -> int:
    return len(next(iter(result["contestants"].values()))["rounds"])


def _machine(result: Result) -> str:
    on = result["on"]
    return f"{on['threads']} threads, load average {on['load_average']:.1f}"


WRITERS = {
    "speed": speed, "loading": loading, "exactness": exactness, "slopes": slopes,
    "convergence": convergence,
}  # fmt: skip


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
