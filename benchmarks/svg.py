"""Bars and lines as SVG text: no library, no binary file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, ROW, LABEL, RIGHT = 760, 22, 250, 210
LEFT_EDGE, RIGHT_EDGE, TOP, BOTTOM = 64, 430, 52, 330
INK, FAINT = "#1f2933", "#d9dee4"
OURS, OURS_TOO, PEER = "#1b6ca8", "#57a0d3", "#9aa5b1"
ALMOST = 1e-9
"""Ends of an axis that are round values count as within it, whatever the rounding."""
COLOURS = {True: (OURS, OURS_TOO), False: (PEER, "#c05621", "#e0a458", "#52606d")}
"""Of ours, and of peers, in the order in which they come."""


@dataclass(frozen=True)
class Series:
    """A named line through points."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = OURS
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From values to places between two ends of the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, logarithmic: bool) -> Axis:
        """An axis that just holds ``values``."""
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1, start, end, logarithmic)

    def place(self, value: float) -> float:
        """Where ``value`` is."""
        low, high, here = (self._scaled(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self) -> list[float]:
        """At most six round values: powers of two, or multiples of 1, 2 or 5 times ten to the n."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        if self.logarithmic:
            step = float(math.ceil((high - low) / 5) or 1)
        else:
            ten = 10.0 ** math.floor(math.log10((high - low) / 5))
            step = next(ten * n for n in (1, 2, 5, 10) if (high - low) / (ten * n) <= 5)
        first = math.ceil(low / step - ALMOST)
        steps = [step * n for n in range(first, math.floor(high / step + ALMOST) + 1)]
        return [2**one for one in steps] if self.logarithmic else steps

    def _scaled(self, value: float) -> float:
        return math.log2(value) if self.logarithmic else value


def picture(height: float, title: str, inside: Sequence[str]) -> str:
    """A whole SVG file; its ground is white, so that it can be read on a dark page."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    heading = [f"<title>{escape(title)}</title>", text(12, 20, title, size=14)]
    return "\n".join([head, ground, *heading, *inside, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(words)}</text>"


def bars(title: str, rows: Sequence[tuple[str, float, str]], note: str = "") -> str:
    """A bar per (name, value, what to write at its end); ours in colour."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    inside = []
    for number, (name, value, words) in enumerate(rows):
        y, length = 34 + number * ROW, (WIDTH - LABEL - RIGHT) * value / most
        box = f'x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}"'
        inside += [
            text(LABEL - 8, y + 15, name, anchor="end"),
            f'<rect {box} fill="{OURS if name.startswith("ours") else PEER}"/>',
            text(LABEL + length + 6, y + 15, words),
        ]
    end = 40 + len(rows) * ROW
    return picture(end + 24, title, [*inside, text(12, end + 14, note, size=11)])


def lines(
    title: str, series: Sequence[Series], across: str, up: str, *, logarithmic: bool = False
) -> str:
    """Lines over common axes, named beside them; ``logarithmic`` both ways."""
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError(f"{title}: nothing to draw")
    x_axis = Axis.over([x for x, _ in points], LEFT_EDGE, RIGHT_EDGE, logarithmic=logarithmic)
    y_axis = Axis.over([y for _, y in points], BOTTOM, TOP, logarithmic=logarithmic)
    drawn = [part for n, one in enumerate(series) for part in _line(one, n, x_axis, y_axis)]
    names = [
        text((LEFT_EDGE + RIGHT_EDGE) / 2, BOTTOM + 36, across, anchor="middle"),
        text(12, 40, up, size=11),
    ]
    return picture(BOTTOM + 50, title, [*_axes(x_axis, y_axis), *drawn, *names])


def _axes(x_axis: Axis, y_axis: Axis) -> list[str]:
    frame = f"M{LEFT_EDGE} {TOP}V{BOTTOM}H{RIGHT_EDGE}"
    parts = [
        f'<path d="{frame}" fill="none" stroke="{INK}"/>',
        *(text(x_axis.place(x), BOTTOM + 16, _short(x), anchor="middle") for x in x_axis.ticks()),
    ]
    for y in y_axis.ticks():
        at = y_axis.place(y)
        parts += [
            f'<path d="M{LEFT_EDGE} {at:.1f}H{RIGHT_EDGE}" stroke="{FAINT}"/>',
            text(LEFT_EDGE - 6, at + 4, _short(y), anchor="end"),
        ]
    return parts


def _line(one: Series, number: int, x_axis: Axis, y_axis: Axis) -> list[str]:
    path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in one.points)
    look = f'stroke="{one.colour}" stroke-width="2"' + (
        ' stroke-dasharray="5 4"' if one.dashed else ""
    )
    y = TOP + 6 + number * 20
    return [
        f'<polyline points="{path}" fill="none" {look}/>',
        f'<path d="M{RIGHT_EDGE + 16} {y}h24" {look}/>',
        text(RIGHT_EDGE + 46, y + 4, one.name),
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
