"""JSON and JSONL, read so that every bad row is named by line, column and reason.

The usual readers give up at the first fault, or take a null, a NaN or a key that
stands twice for a value. This one reads on, and takes nothing that JSON does not know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from qlora_core.data.problems import Problems
from qlora_core.registry.files import no_key_twice

MAX_LINE = 32 * 1024 * 1024
"""Bytes; a longer line is a row that lost its line breaks, not a sample."""
_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_START = re.compile(r"(?m)^[ \t]*")


class Row(NamedTuple):
    """One row as it stands in its file. ``line`` counts from 1."""

    file: str
    line: int
    values: dict[str, Any]


def without_nulls(value: Any) -> Any:
    """``value`` without the keys that hold null, at any depth.

    Parquet gives every struct the keys of all others of its column, with null for those it
    never had: tool schemas and arguments would be rendered with them.
    """
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=no_key_twice, parse_constant=_not_json, parse_float=_finite
)


def parse(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at ``start`` and where it ends. Raises ValueError with the reason."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _may_hold_surrogates(text, start, end) and _has_lone_surrogate(value):
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
    position = _skip_space(text, 0)
    listed = text.startswith("[", position)
    position = _skip_space(text, position + listed)
    restart = re.compile(r"(?m)^" + re.escape(_indent(text, position)) + r"\{")
    lines = _LineCounter(text)
    while position < len(text) and not (listed and text[position] == "]"):
        start = position
        try:
            value, end = parse(text, start)
            position = _next(text, end, listed)
        except ValueError as error:
            found = restart.search(text, start + 1)
            position = found.end() - 1 if found else len(text) + 1
            _refuse(error, text, start, position, file, lines, problems)
            continue
        if isinstance(value, dict):
            yield Row(file, lines.at(start), value)
        else:
            problems.add(file, lines.at(start), _not_an_object(value), row=value)
    if listed:
        _check_end(text, position, file, lines, problems)


def _refuse(
    error: ValueError,
    text: str,
    start: int,
    restart: int,
    file: str,
    lines: _LineCounter,
    problems: Problems,
) -> None:
    """Record the row at ``start`` as bad; past the end of the text there is no ``restart``."""
    line, column, reason = lines.at(start), None, str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = error.msg
        if error.pos < restart:
            line += text.count("\n", start, error.pos)
            column = error.pos - text.rfind("\n", 0, error.pos)
        else:
            reason = f"the row that starts here is not complete ({reason})"
    lost = "; nothing after it could be read" if restart > len(text) else ""
    problems.add(file, line, reason + lost, column=column, row=text[start:restart])


def _check_end(
    text: str, position: int, file: str, lines: _LineCounter, problems: Problems
) -> None:
    """Record a list that is never closed, and what stands after one that is."""
    if position == len(text):
        problems.add(file, lines.at(position), "the list is never closed: the file is cut off")
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        column = rest - text.rfind("\n", 0, rest)
        reason = "text after the end of the list"
        problems.add(file, lines.at(rest), reason, column=column, row=text[rest:])


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
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            reason = "the file is UTF-16; save it as UTF-8"
    except json.JSONDecodeError as error:
        indent = len(line) - len(line.lstrip(b" \t\r\n"))
        reason, column = error.msg, error.pos + 1 + indent
    except ValueError as error:
        reason = str(error)
    problems.add(file, number, reason, column=column, row=line)
    return None


class _LineCounter:
    """Line numbers of growing positions, without counting from the start each time."""

    def __init__(self, text: str) -> None:
        self._text, self._position, self._line = text, 0, 1

    def at(self, position: int) -> int:
        self._line += self._text.count("\n", self._position, position)
        self._position = position
        return self._line


def _next(text: str, end: int, listed: bool) -> int:
    """Where the next row starts. Raises ValueError where a comma is missing or too much."""
    position = _skip_space(text, end)
    if not listed or text.startswith("]", position) or position == len(text):
        return position
    if not text.startswith(",", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    following = _skip_space(text, position + 1)
    if text.startswith("]", following):
        raise json.JSONDecodeError("a comma before the end of the list", text, position)
    return following


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _indent(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    match = _LINE_START.match(text, start)
    return match.group() if match else ""


def _not_an_object(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return f"expected an object with columns, found {names.get(type(value), 'a number')}"


def _may_hold_surrogates(text: str, start: int, end: int) -> bool:
    return text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _skip_line(stream: BinaryIO) -> None:
    while (line := stream.readline(MAX_LINE)) and not line.endswith(b"\n"):
        pass
