"""HTML by function calls: what is not markup is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .reading import finite

LONG = 18
"""Characters from which on a cell of a table of numbers may break."""


class Html(str):
    """Text that is already markup; all other text is escaped by ``tag``."""

    __slots__ = ()


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element; ``class_`` and the like lose their underscore, None content is left out."""
    inner = "".join(
        one if isinstance(one, Html) else escape(str(one)) for one in content if one is not None
    )
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    pairs = [f' {names[k]}="{escape(str(v))}"' for k, v in attributes.items() if v]
    return Html(f"<{name}{''.join(pairs)}>{inner}</{name}>")


def table(rows: Iterable[Sequence[Any]], *, numbers: bool = False) -> Html:
    """Rows whose first cell is a heading; ``numbers`` sets the others to the right."""

    def cell_of(content: Any) -> Html:
        long = " long" if len(str(content)) > LONG else ""
        return tag("td", content, class_=f"number{long}" if numbers else "")

    drawn = (tag("tr", tag("th", first), *map(cell_of, cells)) for first, *cells in rows)
    return tag("table", tag("tbody", *drawn), class_="numbers" if numbers else "")


def number(value: Any) -> str:
    """A count with thousands separators, a measure with four digits; empty for no number."""
    if not finite(value):
        return ""
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def size(count: Any) -> str:
    """Bytes in the largest fitting unit."""
    if not finite(count):
        return ""
    unit, factor = unit_of([count])
    amount = count / factor
    return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:,.0f} {unit}"


def unit_of(counts: Iterable[float]) -> tuple[str, int]:
    """The largest unit of bytes that the largest count fills, and its size."""
    most = max(counts, default=0)
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    return next((unit for unit in units if most >= unit[1]), ("B", 1))


def duration(seconds: Any) -> str:
    """Seconds in words: ``45 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if not finite(seconds):
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
