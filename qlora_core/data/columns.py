"""Which format rows are in, told by their columns, and how `--columns` maps others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from qlora_core.data.json_rows import Row
from qlora_core.errors import BadInput

TARGETS = ("system", "user", "assistant", "messages", "tools", "history", "text")
"""What a column can be. Several ``user`` columns are joined by a blank line, in order."""


class Column(NamedTuple):
    """One column of the file and what it is."""

    name: str
    target: str
    required: bool = True


@dataclass(frozen=True)
class Columns:
    """A row format: its name and what each of its columns is."""

    name: str
    columns: tuple[Column, ...]

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return tuple(column.name for column in self.columns if column.required)

    def describe(self) -> str:
        """The format with its columns; those in brackets may be missing."""
        names = (c.name if c.required else f"[{c.name}]" for c in self.columns)
        return f"{self.name} ({', '.join(names)})"


def _format(name: str, **targets: str) -> Columns:
    """A format from ``column="target"``, with ``?`` after a target that may be missing."""
    columns = (Column(c, t.removesuffix("?"), not t.endswith("?")) for c, t in targets.items())
    return Columns(name, tuple(columns))


# Rank by rank: a row with messages is a conversation, whatever else it carries, and a
# prompt with an answer is more than a text. Within a rank two formats are ambiguous.
RANKS: tuple[tuple[Columns, ...], ...] = (
    (
        _format("conversations", messages="messages", system="system?", tools="tools?"),
        _format("ShareGPT", conversations="messages", system="system?", tools="tools?"),
    ),
    (
        _format(
            "Alpaca",
            system="system?",
            history="history?",
            instruction="user",
            input="user?",
            output="assistant",
        ),
        _format("instruction/response", instruction="user", context="user?", response="assistant"),
        _format(
            "prompt/completion",
            system="system?",
            prompt="user",
            completion="assistant",
            tools="tools?",
        ),
        _format("prompt/response", system="system?", prompt="user", response="assistant"),
        _format("question/answer", system="system?", question="user", answer="assistant"),
        _format("question/response", system="system?", question="user", response="assistant"),
    ),
    (_format("input/output", system="system?", input="user", output="assistant"),),
    (_format("text", text="text"),),
)


def recognise(rows: Sequence[Row], *, columns: str | Mapping[str, str] | None = None) -> Columns:
    """The format of ``rows`` (at least one), by the columns that most of them have.

    ``columns`` maps instead: ``"question=user,answer=assistant"``, or the same as a mapping.
    Raises BadInput, with the columns found, where no format or more than one fits.
    """
    kinds = Counter(tuple(row.values) for row in rows)
    if columns:
        return _mapped(columns, kinds)
    for rank in RANKS:
        counts = {f: _fitting(f, kinds) for f in rank}
        most = max(counts.values())
        if most and most * 2 >= len(rows):
            fitting = [f for f, count in counts.items() if count == most]
            if len(fitting) > 1:
                raise _ambiguous(rows[0].file, fitting, kinds)
            return fitting[0]
    raise _unknown(rows[0].file, kinds)


def parse_mapping(columns: str | Mapping[str, str]) -> Columns:
    """The format that ``COLUMN=TARGET,...`` describes. Raises BadInput where it makes no sense."""
    pairs = _pairs(columns)
    for column, target in pairs:
        if target not in TARGETS:
            near = get_close_matches(target, TARGETS, n=1)
            raise BadInput(
                f"--columns: {column}={target}: there is no role {target!r}",
                f"did you mean {near[0]}?" if near else f"roles are {', '.join(TARGETS)}",
            )
    targets = [target for _, target in pairs]
    if not {"assistant", "messages", "text"}.intersection(targets):
        raise BadInput(
            "--columns names nothing to learn from",
            "map one column to assistant, to messages (a whole conversation) or to text",
        )
    if "text" in targets and len(targets) > 1:
        raise BadInput("--columns: text stands alone", "map either one text column or turns")
    return Columns("mapped by --columns", tuple(Column(c, t) for c, t in pairs))


def _pairs(columns: str | Mapping[str, str]) -> list[tuple[str, str]]:
    if not isinstance(columns, str):
        return list(columns.items())
    pairs = []
    for part in columns.split(","):
        column, equals, target = part.rpartition("=")
        if not equals or not column.strip():
            raise BadInput(
                f"--columns: {part!r} is not COLUMN=TARGET",
                "write for example --columns question=user,answer=assistant",
            )
        pairs.append((column.strip(), target.strip()))
    return pairs


def _mapped(columns: str | Mapping[str, str], kinds: Counter[tuple[str, ...]]) -> Columns:
    """The mapping, its columns checked: one that no row has is misspelt."""
    mapped = parse_mapping(columns)
    found = list(dict.fromkeys(name for kind in kinds for name in kind))
    for name in (column.name for column in mapped.columns if column.name not in found):
        near = get_close_matches(name, found, n=1)
        raise BadInput(
            f"--columns names {name!r}; the columns are {_list(found)}",
            f"did you mean {near[0]!r}?" if near else "name columns that the file has",
        )
    return mapped


def _fitting(columns: Columns, kinds: Counter[tuple[str, ...]]) -> int:
    required = set(columns.required)
    return sum(count for kind, count in kinds.items() if required.issubset(kind))


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "(none)"


def _found(kinds: Counter[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(name for kind, _ in kinds.most_common() for name in kind))


def _example(names: Sequence[str]) -> str:
    first, last = (names[0], names[-1]) if len(names) > 1 else ("question", "answer")
    return f"--columns {first}=user,{last}=assistant"


def _ambiguous(file: str, fitting: Sequence[Columns], kinds: Counter[tuple[str, ...]]) -> BadInput:
    names = " and ".join(f.describe() for f in fitting)
    chosen = fitting[0].columns
    example = ",".join(f"{c.name}={c.target}" for c in chosen if c.required)
    return BadInput(
        f"{file}: more than one format fits the columns {_list(_found(kinds))}: {names}",
        f"say which columns to learn from, for example --columns {example}",
    )


def _unknown(file: str, kinds: Counter[tuple[str, ...]]) -> BadInput:
    known = "; ".join(f.describe() for rank in RANKS for f in rank)
    found = _found(kinds)
    return BadInput(
        f"{file}: no known format has the columns {_list(found)}\n  known formats: {known}",
        f"say what they are, for example {_example(found)}",
    )
