"""CSV and TSV, a row for every record that agrees with the header."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from qlora_core.data.json_rows import MAX_LINE, Row
from qlora_core.data.problems import Problems
from qlora_core.errors import BadInput

_SEPARATORS = ",;\t|"


def read_csv(text: str, name: str, problems: Problems) -> Iterator[Row]:
    """One row a record, keyed by the header; ``line`` is where the record starts."""
    csv.field_size_limit(MAX_LINE)
    first = text[: text.find("\n")] if "\n" in text else text
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            problems.add(name, line, f"not CSV: {error}")
            continue
        if record is None:
            return
        if header is None:
            header = [column.strip() for column in record]
            no_column_twice(header, f"{name}:1")
        elif record:
            reason = _csv_fault(record, header)
            if reason:
                problems.add(name, line, reason, row=record)
            else:
                yield Row(name, line, dict(zip(header, record, strict=True)))


def no_column_twice(columns: Sequence[str], where: str) -> None:
    """Raise BadInput where two columns have one name: one of them would be lost."""
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise BadInput(
            f"{where}: the column {', '.join(twice)!r} stands twice in the header",
            "give every column a name of its own",
        )


def _csv_fault(record: list[str], header: list[str]) -> str | None:
    if len(record) != len(header):
        return f"{len(record)} fields, the header has {len(header)} (is a quote missing?)"
    if not all(map(_is_utf8, record)):
        return "a field holds bytes that are not UTF-8"
    return None


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
