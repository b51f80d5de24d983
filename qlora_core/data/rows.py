"""Rows from files and from the Hub, each with the place it came from."""

from __future__ import annotations

import gc
import gzip
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, cast

from qlora_core.data.csv_rows import read_csv
from qlora_core.data.folders import KINDS, files_of, kind_of, not_read
from qlora_core.data.json_rows import Row, read_json, read_jsonl
from qlora_core.data.parquet_rows import read_parquet
from qlora_core.data.problems import Problems
from qlora_core.errors import BadInput

_LIST = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|$)")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[^/\\]+))?")


@dataclass(frozen=True)
class SourceFile:
    """One file (or Hub dataset) that was read, as the run record names it."""

    name: str
    kind: str
    rows: int
    """Good ones and bad ones."""
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Rows:
    """The good rows of one source, in file order, and what was read."""

    rows: list[Row]
    files: list[SourceFile]
    ignored: list[str] = field(default_factory=list)
    """What lies in the folders of the source and was not read; folders end with a slash."""


def read_rows(
    source: str | Path,
    *,
    splits: tuple[str, ...] = ("train",),
    skip_bad: bool = False,
    side_file: Path | None = None,
    offline: bool = False,
) -> Rows:
    """The rows of ``source``: paths or Hub ids, several separated by commas.

    A path is a JSON, JSONL, CSV, TSV, Parquet or text file, also gzipped, or a folder of
    them. A Hub id is ``OWNER/NAME``, ``OWNER/NAME/CONFIG`` or either with ``:SPLIT``; without
    one, the first of ``splits`` that the dataset has.
    Raises BadInput with file, line and reason of every bad row, unless ``skip_bad``.
    """
    problems = Problems(side_file)
    try:
        rows = collect_rows(source, problems, splits=splits, offline=offline)
    finally:
        problems.close()
    if not skip_bad:
        problems.refuse(len(rows.rows))
    return rows


def collect_rows(
    source: str | Path,
    problems: Problems,
    *,
    splits: tuple[str, ...] = ("train",),
    offline: bool = False,
) -> Rows:
    """As ``read_rows``, with the bad rows in ``problems`` for the caller to judge."""
    rows: list[Row] = []
    files = []
    ignored: list[str] = []
    for part in _parts(source):
        paths: Sequence[Path | None] = [Path(part) if Path(part).exists() else None]
        if Path(part).is_dir():
            paths, left = files_of(Path(part))
            ignored += left
        for path in paths:
            before = len(rows) + problems.count
            if path is None:
                kind, size, digest = "Hub", None, None
                found = _read_hub(part, splits, offline)
            else:
                kind, size, digest = kind_of(path), path.stat().st_size, _digest(path)
                found = _read_file(path, kind, problems)
            with _no_garbage_collection():
                rows.extend(found)
            count = len(rows) + problems.count - before
            name = str(path) if path else rows[-1].file if count else part
            files.append(SourceFile(name, kind, count, size, digest))
    return Rows(rows, files, not_read(ignored, (file.name for file in files)))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows make no cycles, and looking for some among millions of rows takes half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parts(source: str | Path) -> list[str]:
    if str(source).strip() and Path(source).exists():  # a comma may be part of a name
        return [str(source)]
    parts = [part.strip() for part in str(source).split(",") if part.strip()]
    if not parts:
        raise BadInput("no data source was given", "name a data file, a folder or a Hub id")
    return parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path, kind: str, problems: Problems) -> Iterator[Row]:
    name = str(path)
    if kind == "Parquet":
        yield from read_parquet(path, name, problems)
        return
    with _open(path) as stream:
        if kind == "JSONL" and not _starts_a_list(stream):
            yield from read_jsonl(stream, name, problems)
            return
        text = _text(stream, name, problems, strict=kind != "CSV")
    if text is None:
        return
    if kind == "CSV":
        yield from read_csv(text, name, problems)
    elif kind == "text":
        if text.strip():
            yield Row(name, 1, {"text": text})
    else:
        yield from read_json(text, name, problems)


def _open(path: Path) -> BinaryIO:
    try:
        if path.name.lower().endswith(".gz"):
            return cast("BinaryIO", gzip.open(path))
        return path.open("rb")
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}", "check its permissions"
        ) from None


def _starts_a_list(stream: BinaryIO) -> bool:
    """Whether a .jsonl file is one JSON list under the wrong name."""
    try:
        start = stream.read(4096)
        stream.seek(0)
    except (EOFError, OSError):
        return False
    return _LIST.match(start) is not None


def _text(stream: BinaryIO, name: str, problems: Problems, *, strict: bool) -> str | None:
    """The whole file as text; ``None``, with the problem recorded, where it is none."""
    content = b""
    try:
        content = stream.read()
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            problems.add(name, 1, "the file is UTF-16; save it as UTF-8")
            return None
        return content.decode("utf-8-sig", "strict" if strict else "surrogateescape")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        problems.add(name, line, f"byte {column} of the line is not UTF-8")
    except (EOFError, OSError) as error:
        problems.add(name, 1, f"cannot be read: {error}")
    return None


def _read_hub(part: str, splits: tuple[str, ...], offline: bool) -> Iterator[Row]:
    from qlora_core.data.hub import read_hub

    match = _HUB_ID.fullmatch(part)
    if match is None or Path(part).suffix.lower() in {*KINDS, ".gz"}:
        raise _missing(part)
    named = (match["split"],) if match["split"] else splits
    yield from read_hub(match["id"], match["config"], named, offline=offline)


def _missing(part: str) -> BadInput:
    folder = Path(part).parent
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(Path(part).name, names, n=3)
    hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    return BadInput(f"no such data file: {part}", hint or "name a file, a folder or OWNER/NAME")
