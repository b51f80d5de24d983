"""Bad rows: each with its file, line and reason, counted to the last one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from qlora_core.errors import BadInput

SHOWN = 20
"""How many problems a message lists; the total is always exact."""
KEPT = 1000
"""How many problems stay in memory; a side file gets all of them."""


class Problem(NamedTuple):
    """Why one row cannot be used. ``line`` is a row number where the file has no lines."""

    file: str
    line: int
    reason: str
    column: int | None = None

    def __str__(self) -> str:
        column = "" if self.column is None else f":{self.column}"
        return f"{self.file}:{self.line}{column}: {self.reason}"


class Problems:
    """All bad rows of one run: the count exact, the first ``KEPT`` at hand.

    With ``side_file`` every bad row is also written there as one JSON line
    ``{"file", "line", "column", "reason", "row"}``; the file appears with the first problem.
    """

    def __init__(self, side_file: Path | None = None) -> None:
        self.count = 0
        self.first: list[Problem] = []
        self.side_file = side_file
        self._stream: IO[str] | None = None

    def add(
        self, file: str, line: int, reason: str, *, column: int | None = None, row: Any = None
    ) -> None:
        """Record one bad row. ``row`` is what was read, as text, bytes or values."""
        problem = Problem(file, line, reason, column)
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(problem)
        if self.side_file is not None:
            self._write(self.side_file, problem, row)

    def refuse(self, kept: int) -> None:
        """Raise BadInput that lists the problems, if there are any."""
        if self.count:
            rows = "row" if self.count == 1 else "rows"
            raise BadInput(
                f"{self.count:,} bad {rows}, {kept:,} good\n{listing(self.first, self.count)}",
                "correct them, or leave them out with --skip-bad "
                "(they are then counted and written to a side file)",
            )

    def close(self) -> None:
        """Finish the side file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, path: Path, problem: Problem, row: Any) -> None:
        if self._stream is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("w", encoding="utf-8", newline="\n")
        text = row.decode("utf-8", "backslashreplace") if isinstance(row, bytes) else row
        record = {**problem._asdict(), "row": text}
        self._stream.write(json.dumps(record, default=str) + "\n")  # ASCII: surrogates survive


def listing(problems: Iterable[Problem], total: int) -> str:
    """The first problems in the order of their places, and how many more there are."""
    shown = sorted(problems, key=lambda problem: problem[:2])[:SHOWN]
    more = total - len(shown)
    return "\n".join([*(f"  {p}" for p in shown), *([f"  ... and {more:,} more"] if more else [])])
