"""Names that mean one thing: the shortest dotted suffixes that single layers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


def tails(path: str) -> Iterator[str]:
    """The dotted suffixes of ``path``, shortest first: ``c``, ``b.c``, ``a.b.c``."""
    parts = path.split(".")
    for start in range(len(parts) - 1, -1, -1):
        yield ".".join(parts[start:])


def heads(path: str) -> list[str]:
    """``path`` and the modules around it, outermost first: ``a``, ``a.b``, ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def matches(path: str, suffix: str) -> bool:
    """Whether PEFT takes ``suffix`` in a list to mean the module at ``path``."""
    return path == suffix or path.endswith(f".{suffix}")


def hits(paths: Iterable[str], suffixes: Iterable[str]) -> set[str]:
    """Those of ``paths`` that any of ``suffixes`` means. Linear in the number of paths."""
    wanted = frozenset(suffixes)
    return {path for path in paths if not wanted.isdisjoint(tails(path))}


def shortest_suffixes(
    groups: Mapping[str, Mapping[str, str]], others: Iterable[str], *, least: int = 1
) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """For each group the shortest suffixes that mean its paths and none of ``others``.

    ``groups`` maps a group's name to ``path -> path within its decoder layer``: a suffix never
    reaches further up than that, so it holds no layer's number. A suffix also means no path of
    another group where one can be had, and has ``least`` parts where the path has as many.
    Returns the suffixes and the paths that have none.
    """
    taken = {tail for path in others for tail in tails(path)}
    found: dict[str, tuple[str, ...]] = {}
    nameless: set[str] = set()
    for group, paths in groups.items():
        rest = [path for name, own in groups.items() if name != group for path in own]
        elsewhere = {tail for path in rest for tail in tails(path)}
        names: dict[str, None] = {}
        for path, inner in paths.items():
            free = [t for t in tails(inner) if t not in taken and not t[0].isdigit()]
            if not free:
                nameless.add(path)
                continue
            free = [t for t in free if t.count(".") + 1 >= least] or free[-1:]
            names[next((t for t in free if t not in elsewhere), free[-1])] = None
        found[group] = tuple(names)
    return found, frozenset(nameless)
