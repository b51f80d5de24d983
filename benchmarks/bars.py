"""What was promised before it was measured, and whether it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.measuring import Seen

Rounds = Mapping[str, Sequence[Seen]]

FIGURES = {
    "speed": "tokens/s over",
    "share": "share of",
    "peak": "peak memory over",
    "cpu": "CPU time over",
    "cpu times": "times faster (CPU) than",
    "wall times": "times faster (wall) than",
}
SMALL = ("peak", "cpu")


@dataclass(frozen=True)
class Bar:
    """One line of the promise: a ratio of two contestants in one interleaved run."""

    case: str
    """Of ``case_of``."""
    figure: str
    """A key of ``FIGURES``."""
    contestant: str
    over: str
    least: float
    """At most, for a figure that is to be small."""
    goal: float | None

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.contestant}: {FIGURES[self.figure]} {self.over}"

    def kept(self, value: float, against: float | None) -> bool:
        """Whether ``value`` is on the right side of ``against``."""
        if against is None:
            return True
        return value <= against if self.figure in SMALL else value >= against


TRL = "TRL default"
PADDED, FLAT = "transformers padded", "transformers flattened"
BARS = (
    Bar("160m", "speed", "ours", TRL, 3.5, 4.5),
    Bar("160m", "speed", "ours, recomputing", TRL, 2.8, 3.3),
    Bar("160m", "speed", "ours, recomputing", f"{PADDED}, recomputing", 2.2, 2.6),
    Bar("160m", "speed", "ours, recomputing", f"{FLAT}, recomputing", 1.5, 1.8),
    Bar("160m", "speed", "ours", PADDED, 1.8, 2.3),
    Bar("160m", "speed", "ours", FLAT, 1.35, 1.7),
    Bar("160m", "speed", "ours eager", TRL, 2.8, 3.2),
    Bar("160m", "peak", "ours, recomputing", TRL, 0.15, 0.10),
    Bar("160m", "peak", "ours", TRL, 0.22, 0.15),
    Bar("160m", "share", "ours", "the machine's limit", 0.57, 0.70),
    Bar("160m", "speed", "ours generic, recomputing", f"{PADDED}, recomputing", 1.5, None),
    Bar("128k", "speed", "ours", TRL, 4.5, 6.0),
    Bar("1b", "speed", "ours", TRL, 2.0, 3.0),
    Bar("1b", "speed", "ours", FLAT, 1.15, 1.4),
    Bar("1b", "speed", "ours, recomputing", f"{FLAT}, recomputing", 1.15, 1.4),
    Bar("generic", "speed", "ours generic, recomputing", f"{PADDED}, recomputing", 1.5, None),
)
LOADING = (
    Bar("1b", "cpu", "ours", "transformers", 0.30, 0.20),
    Bar("1b", "peak", "ours", "transformers", 0.40, 0.35),
    Bar("1b", "cpu times", "ours reopening", "transformers", 10.0, 20.0),
    Bar("1b", "wall times", "ours reopening", "transformers", 10.0, 20.0),
)
"""Of ``loading.py``; reopening is held against transformers' first load, by both clocks."""


def case_of(shape: str, vocabulary: int, family: str) -> str:
    """Which bars a run is held to; empty where none was set."""
    if family != "llama":
        return "generic" if shape == "160m" else ""
    if shape != "160m":
        return shape
    return "128k" if vocabulary >= 128000 else "160m" if vocabulary == 32000 else ""


def verdicts(rounds: Rounds, case: str, share: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each bar of ``case`` with what was measured; a bar that could not be measured says so."""
    return [judged(bar, _value(bar, rounds, share)) for bar in BARS if bar.case == case]


def judged(bar: Bar, value: float | None) -> dict[str, Any]:
    """A bar as it is kept in the results."""
    known = {"bar": bar.name, "case": bar.case, "least": bar.least, "goal": bar.goal}
    if value is None:
        return known | {"value": None, "met": None, "goal_met": None}
    met, goal = bar.kept(value, bar.least), bar.kept(value, bar.goal)
    return known | {"value": value, "met": met, "goal_met": None if bar.goal is None else goal}


def line(verdict: Mapping[str, Any]) -> str:
    """For people: the ratio, and whether the bar is met."""
    words = {True: "met", False: "not met", None: "not measured"}
    value = "" if verdict["value"] is None else f"{verdict['value']:.2f}, "
    text = f"{verdict['bar']}: {value}bar {verdict['least']:g}: {words[verdict['met']]}"
    if verdict["goal_met"] is None:
        return text
    return text + f", goal {verdict['goal']:g}: {words[verdict['goal_met']]}"


def ratio(rounds: Rounds, name: str, over: str) -> float:
    """Times as fast: the median of each round's own ratio of wall clock."""
    return median(b.wall / a.wall for a, b in zip(rounds[name], rounds[over], strict=True))


def peak(seen: Sequence[Seen]) -> float | None:
    """Bytes: the highest of all rounds."""
    return max((s.peak for s in seen if s.peak is not None), default=None)


def _value(bar: Bar, rounds: Rounds, share: Mapping[str, float]) -> float | None:
    if bar.figure == "share":
        return share.get(bar.contestant)
    if not rounds.get(bar.contestant) or not rounds.get(bar.over):
        return None
    if bar.figure == "speed":
        return ratio(rounds, bar.contestant, bar.over)
    ours, theirs = peak(rounds[bar.contestant]), peak(rounds[bar.over])
    return ours / theirs if ours is not None and theirs else None
