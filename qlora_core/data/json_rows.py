"""JSON and JSONL, read so that every bad row is named by line, column and reason.

The usual readers give up at the first fault, or take a null, a NaN or a key that
stands twice for a value. This one reads on, and takes nothing that JSON does not know.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from qlora_core.data.problems import Problems

MAX_LINE = 32 * 1024 * 1024
"""Bytes; a longer line is a row that lost its line breaks, not a sample."""
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LINE_START = re.compile(r"(?m)^[ \t]*")


class Row(NamedTuple):
    """One row as it stands in its file. ``line`` counts from 1."""

    file: str
    line: int
    values: dict[str, Any]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the key "{twice}" stands twice in one object')
    return values


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_not_json, parse_float=_finite
)


def parse(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at ``start`` and where it ends. Raises ValueError with the reason."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _SURROGATE.search(text, start, end) and _has_lone_surrogate(value):
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is not text")
    return value, end


def read_jsonl(stream: BinaryIO, file: str, problems: Problems) -> Iterator[Row]:
    """One row a line; blank lines are no rows. Bad lines go to ``problems``."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                _skip_line(stream)
                reason = f"the line is longer than {MAX_LINE:,} bytes"
                problems.add(file, number, reason, row=line[:1000])
                continue
            row = _row(line, file, number, problems)
            if row is not None:
                yield row
    except (EOFError, OSError) as error:  # a compressed file that is cut off or damaged
        problems.add(file, number + 1, f"cannot be read from here on: {error}")


def read_json(text: str, file: str, problems: Problems) -> Iterator[Row]:
    """The rows of one JSON list, or of objects that follow each other.

    After a fault the reader goes on at the next line that starts like the first row did;
    what lies between counts as one bad row.
    """
    position = _SPACE.match(text).end()  # type: ignore[union-attr]
    listed = text.startswith("[", position)
    position = _SPACE.match(text, position + listed).end()  # type: ignore[union-attr]
    restart = re.compile(r"(?m)^" + re.escape(_indent(text, position)) + r"\{")
    lines = _LineCounter(text)
    closed = not listed
    while position < len(text):
        if listed and text.startswith("]", position):
            closed = True
            _refuse_rest(text, position + 1, file, lines, problems)
            break
        try:
            value, end = parse(text, position)
            following = _next(text, end, listed)
        except ValueError as error:
            found = restart.search(text, position + 1)
            end = found.end() - 1 if found else len(text)
            at, reason = _where(error, position)
            problems.add(
                file,
                lines.at(at),
                reason + ("" if found else "; nothing after it could be read"),
                column=lines.column(at),
                row=text[position:end],
            )
            closed = closed or not found
            position = end
            continue
        if isinstance(value, dict):
            yield Row(file, lines.at(position), value)
        else:
            problems.add(file, lines.at(position), _not_an_object(value), row=value)
        position = following
    if not closed:
        problems.add(file, lines.at(len(text)), "the list is never closed: the file is cut off")


def _row(line: bytes, file: str, number: int, problems: Problems) -> Row | None:
    """The row of one line; ``None`` when it is blank or bad."""
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):  # a byte order mark
        line = line[3:]
    column = None
    try:
        text = line.decode("utf-8").strip(" \t\r\n")
        if not text:
            return None
        value, end = parse(text)
        if isinstance(value, dict) and end == len(text):
            return Row(file, number, value)
        reason = _not_an_object(value) if end == len(text) else "text after the end of the object"
        column = end + 1 if end < len(text) else None
    except UnicodeDecodeError as error:
        reason, column = f"byte {error.start + 1} of the line is not UTF-8", None
    except json.JSONDecodeError as error:
        indent = len(line) - len(line.lstrip(b" \t\r\n"))
        reason, column = error.msg, error.pos + 1 + indent
    except ValueError as error:
        reason = str(error)
    problems.add(file, number, reason, column=column, row=line)
    return None


class _LineCounter:
    """Line numbers of growing positions without counting from the start each time."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.line = text, 0, 1

    def at(self, position: int) -> int:
        if position < self.position:
            return self.line - self.text.count("\n", position, self.position)
        self.line += self.text.count("\n", self.position, position)
        self.position = position
        return self.line

    def column(self, position: int) -> int:
        return position - self.text.rfind("\n", 0, position)


def _next(text: str, end: int, listed: bool) -> int:
    """Where the next row starts. Raises ValueError where a comma is missing or too much."""
    position = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    if not listed or text.startswith("]", position) or position == len(text):
        return position
    if not text.startswith(",", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    position = _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]
    if text.startswith("]", position):
        raise json.JSONDecodeError("a comma before the end of the list", text, position)
    return position


def _refuse_rest(
    text: str, position: int, file: str, lines: _LineCounter, problems: Problems
) -> None:
    rest = _SPACE.match(text, position).end()  # type: ignore[union-attr]
    if rest < len(text):
        reason = "text after the end of the list"
        problems.add(file, lines.at(rest), reason, column=lines.column(rest), row=text[rest:])


def _where(error: ValueError, position: int) -> tuple[int, str]:
    if isinstance(error, json.JSONDecodeError):
        return error.pos, error.msg
    return position, str(error)


def _indent(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    match = _LINE_START.match(text, start)
    return match.group() if match else ""


def _not_an_object(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return f"expected an object with columns, found {names.get(type(value), 'a number')}"


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _skip_line(stream: BinaryIO) -> None:
    while (line := stream.readline(MAX_LINE)) and not line.endswith(b"\n"):
        pass
