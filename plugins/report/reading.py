"""What a run left, read with tolerance: anything may be missing, and a line may be cut."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

Point = tuple[float, float]


def finite(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


class Metrics(NamedTuple):
    """The lines of ``metrics.jsonl``."""

    training: list[Mapping[str, Any]]
    evaluation: list[Mapping[str, Any]]
    unreadable: int

    @classmethod
    def read(cls, path: Path) -> "Metrics":
        """What can be read of the file; a line cut by a crash is counted."""
        training: list[Mapping[str, Any]] = []
        evaluation: list[Mapping[str, Any]] = []
        unreadable = 0
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for text in lines:
            try:
                line = json.loads(text)
                (evaluation if "eval_loss" in line else training).append({"step": 0, **line})
            except (ValueError, TypeError):
                unreadable += 1
        return cls(training, evaluation, unreadable)

    def points(self, key: str) -> list[Point]:
        """(step, value) of every line that has a finite value."""
        lines = self.evaluation if key == "eval_loss" else self.training
        found = [(line["step"], line.get(key)) for line in lines]
        return [(step, value) for step, value in found if finite(value)]


class Record:
    """A run's record, asked by path; what is missing is None, an empty mapping or list."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __call__(self, *keys: str) -> Any:
        """What lies at that path, or None."""
        found: Any = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def map(self, *keys: str) -> Mapping[str, Any]:
        """The mapping at that path, or an empty one."""
        found = self(*keys)
        return found if isinstance(found, Mapping) else {}

    def list(self, *keys: str) -> Sequence[Any]:
        """The list at that path, or an empty one."""
        found = self(*keys)
        return found if isinstance(found, list | tuple) else []
