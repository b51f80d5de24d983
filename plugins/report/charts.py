"""Line charts as inline SVG. Labels are HTML beside it, so that they keep their size on a phone."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from .markup import Html, number, tag
from .reading import Point


class Line(NamedTuple):
    """One line of a chart. ``style`` is a class of the template: faint, dots, dashed."""

    name: str
    points: list[Point]
    style: str = ""
    color: str = "train"


def smooth(points: list[Point]) -> list[Point]:
    """The mean over the tenth of the run around each step: centred, so that it never lags."""
    reach = max(2, len(points) // 20)
    sums = [0.0, *accumulate(value for _, value in points)]
    averaged = []
    for i, (step, _) in enumerate(points):
        start, end = max(0, i - reach), min(len(points), i + reach + 1)
        averaged.append((step, (sums[end] - sums[start]) / (end - start)))
    return averaged


def thin(points: list[Point], most: int = 600) -> list[Point]:
    """The lowest and highest point of each of ``most / 2`` stretches: no spike is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most / 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    zero: bool = True,
    show: Callable[[float], str] = number,
    unit: float = 1.0,
) -> Html:
    """A figure of all lines that have points, empty where none has.

    ``zero`` starts the value axis at 0; ``show`` writes values and axis labels, which stand
    at round multiples of ``unit``.
    """
    lines = [line._replace(points=thin(line.points)) for line in lines if line.points]
    if not lines:
        return Html()
    points = [point for line in lines for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    ticks = [unit * y for y in axis([y / unit for _, y in points], zero=zero)]
    low, high = ticks[0], ticks[-1]

    def place(point: Point) -> Point:
        x, y = point
        across = (x - first) / (last - first) if last > first else 0.5
        return 100 * across, 100 * (high - y) / (high - low)

    rules = [tag("path", d=f"M0 {place((first, y))[1]:.2f}H100", class_="rule") for y in ticks]
    drawn = [_path(line, [place(point) for point in line.points]) for line in lines]
    picture = tag(
        "svg", *rules, *drawn, viewBox="0 0 100 100", preserveAspectRatio="none",
        role="img", aria_label=f"{title} by step",
    )  # fmt: skip
    labels = [
        tag("i", show(y), class_="y", style=f"top:{place((first, y))[1]:.2f}%") for y in ticks
    ]
    steps = [tag("i", text, class_="x", style=f"left:{x}%") for x, text in _steps(first, last)]
    return tag("figure", _caption(title, lines, show),
               tag("div", picture, *labels, *steps, class_="plot",
                   data_chart=_values(first, last, lines, show)))  # fmt: skip


def axis(values: Sequence[float], *, zero: bool) -> list[float]:
    """Four to seven round numbers that enclose all values."""
    low, high = min(values), max(values)
    low = min(low, 0.0) if zero else low
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    bottom, top = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    top = max(top, bottom + 1)
    return [float(f"{k * step:.10g}") for k in range(bottom, top + 1)]


def _path(line: Line, points: Sequence[Point]) -> Html:
    """A polyline; dots are strokes of no length with round caps."""
    if line.style == "dots" or len(points) == 1:
        shape = "".join(f"M{x:.2f} {y:.2f}h.001" for x, y in points)
        style = "dots"
    else:
        shape = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
        style = line.style
    return tag("path", d=shape, class_=style, style=f"stroke:var(--{line.color})")


def _steps(first: float, last: float) -> list[tuple[float, str]]:
    if last <= first:
        return [(50, f"step {first:,.0f}")]
    return [(0, f"{first:,.0f}"), (50, "step"), (100, f"{last:,.0f}")]


def _caption(title: str, lines: Sequence[Line], show: Callable[[float], str]) -> Html:
    named = [line for line in lines if line.name]
    keys = [
        tag("small", tag("span", class_=f"key {line.style}", style=f"--c:var(--{line.color})"),
            f"{line.name} {show(line.points[-1][1])}")
        for line in named if line.style != "faint"
    ]  # fmt: skip
    return tag("figcaption", tag("b", title), *keys)


def _values(first: float, last: float, lines: Sequence[Line], show: Callable[[float], str]) -> str:
    """What the page's script shows under the pointer: step and written value."""
    series = [
        {"name": line.name, "points": [(x, show(y)) for x, y in line.points]}
        for line in lines if line.name and line.style != "dashed"
    ]  # fmt: skip
    return json.dumps({"from": first, "to": last, "series": series}, separators=(",", ":"))
