"""What became of every row: the numbers behind "nothing is skipped silently"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from qlora_core.data.rows import SourceFile

EXAMPLES = 10
"""How many places a count remembers."""
SHOWN = 5
"""How many of them the terminal shows."""


@dataclass
class Count:
    """How often something happened, and the first places (``FILE:LINE``) where it did."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, file: str, line: int) -> None:
        """One more, at this place."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{file}:{line}")

    def __str__(self) -> str:
        shown = self.examples[:SHOWN]
        files = {place.rpartition(":")[0] for place in shown}
        if len(files) == 1:  # the file's name once
            lines = [place.rpartition(":")[2] for place in shown]
            shown = [f"{Path(files.pop()).name}:{lines[0]}", *lines[1:]]
        more = ", ..." if self.count > len(shown) else ""
        return f"{self.count:,} ({', '.join(shown)}{more})" if shown else "0"


class Warn(NamedTuple):
    """Something to look at before the run, and what to do about it."""

    code: str
    message: str
    remedy: str


class Lengths(NamedTuple):
    """Tokens per sample."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Where the rows came from, what was kept, dropped and cut, and how much there is to learn.

    ``rows == kept + refused + sum of dropped``, always. ``cut`` counts rows that lost the
    start of their prompt (``cut_tokens``, and ``answers_lost`` of earlier turns with it),
    ``split`` long texts and conversations that became several samples, ``evaluated_on`` training
    samples that were taken out because equal ones are evaluated on. ``ignored`` are the first of
    ``ignored_count`` files and folders that lie beside the data in its folders and were not read.
    Token counts are those of the training samples, without padding.
    """

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]
    ignored_count: int
    formats: Mapping[str, str]
    rows: int
    kept: int
    refused: int
    dropped: Mapping[str, Count]
    problems: tuple[str, ...]
    side_file: str | None
    cut: Count
    cut_tokens: int
    answers_lost: int
    split: Count
    duplicates: Count
    evaluated_on: Count
    train_samples: int
    evaluation_samples: int
    tokens: int
    learned_tokens: int
    evaluation_tokens: int
    lengths: Lengths | None
    notes: Mapping[str, Count]
    warnings: tuple[Warn, ...]

    def summary(self) -> list[str]:
        """The report for the terminal, a line each."""
        lines = [f"{f.name}: {f.rows:,} rows, {self.formats.get(f.name, '-')}" for f in self.files]
        if self.ignored:
            more = f", ... ({self.ignored_count:,} in all)" if self.ignored_count > SHOWN else ""
            lines.append(f"not read, in the same folder: {', '.join(self.ignored[:SHOWN])}{more}")
        lines.append(
            f"{self.rows:,} rows: {self.kept:,} kept, {self._dropped:,} dropped, "
            f"{self.refused:,} refused -> {self.train_samples:,} training samples"
            f" and {self.evaluation_samples:,} for evaluation"
        )
        lines += [f"  dropped: {reason}: {count}" for reason, count in self.dropped.items()]
        lines += [f"  refused: {problem}" for problem in self.problems[:SHOWN]]
        if self.refused > SHOWN:
            lines.append(f"  ... and {self.refused - SHOWN:,} more refused")
        if self.side_file:
            lines.append(f"  all refused rows are in {self.side_file}")
        if self.cut.count:
            lost = f", {self.answers_lost:,} earlier answers" if self.answers_lost else ""
            lines.append(f"  cut at the start: {self.cut}, {self.cut_tokens:,} tokens{lost}")
        if self.evaluated_on.count:
            lines.append(f"  taken out, as equal samples are evaluated on: {self.evaluated_on}")
        if self.split.count:
            lines.append(f"  long rows split into several samples: {self.split}")
        lines.append(self._tokens())
        lines += [f"  note: {note}: {count}" for note, count in self.notes.items()]
        lines += [f"  warning: {w.message}\n    -> {w.remedy}" for w in self.warnings]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, for the run record."""
        return {
            **asdict(self),
            "lengths": self.lengths._asdict() if self.lengths else None,
            "warnings": [warning._asdict() for warning in self.warnings],
        }

    @property
    def _dropped(self) -> int:
        return sum(count.count for count in self.dropped.values())

    def _tokens(self) -> str:
        share = self.learned_tokens / self.tokens if self.tokens else 0.0
        lengths = self.lengths
        spread = (
            f"; per sample {lengths.min:,} to {lengths.max:,}, median {lengths.median:,}, "
            f"95 % at most {lengths.p95:,}"
            if lengths
            else ""
        )
        return f"{self.tokens:,} tokens, {self.learned_tokens:,} learned ({share:.1%}){spread}"


def lengths_of(counts: Iterable[int]) -> Lengths | None:
    """The spread of ``counts``; ``None`` when there are none."""
    ordered = sorted(counts)
    if not ordered:
        return None
    return Lengths(ordered[0], _at(ordered, 0.5), _at(ordered, 0.95), ordered[-1])


def _at(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
