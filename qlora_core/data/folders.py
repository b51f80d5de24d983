"""Data files of a folder: which are read, which are not and said, and which cannot be left out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from qlora_core.errors import BadInput

KINDS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV",
    ".parquet": "Parquet", ".txt": "text", ".md": "text",
}  # fmt: skip
_UNREAD = frozenset({
    ".jsonlines", ".parq", ".pq", ".arrow", ".feather", ".avro", ".orc", ".xls", ".xlsx", ".ods",
    ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".msgpack", ".tfrecord", ".sqlite", ".xml",
    ".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".br", ".zip", ".tar", ".tgz", ".7z", ".rar",
})  # fmt: skip
"""Endings of what may be rows in a form that is not read: to go on without them loses data."""
_ABOUT = frozenset({"readme", "license", "licence"})
_SHOWN = 5
_LOOKED_AT = 10_000
"""Entries of a subfolder that are looked at for data files."""


def files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The data files of ``folder``, in the order of their names, and all else that lies there.

    Subfolders are not entered; their paths end with a slash. A README and a licence are about
    the data, unless the folder holds only texts. Raises BadInput for a folder without data
    files, and for one with files that look like rows and cannot be read.
    """
    entries = sorted(folder.iterdir())
    found = [entry for entry in entries if entry.is_file() and suffix(entry) in KINDS]
    unread = [e for e in entries if e not in found and _looks_like_rows(e)]
    if unread:
        raise BadInput(
            f"the folder {folder} holds {len(unread)} data files of a kind that is not read: "
            + _few(unread),
            f"unpack, convert or rename them ({_supported()}), "
            "or name only the files that are meant, separated by commas",
        )
    rows = [file for file in found if file.name.lower().partition(".")[0] not in _ABOUT]
    if rows and all(KINDS[suffix(file)] == "text" for file in rows):
        rows = found
    left = [entry for entry in entries if entry not in rows]
    if not rows:
        beside = f", only {_few(left)}" if left else ""
        raise BadInput(
            f"the folder {folder} holds no data file{beside}",
            f"name the files or folders that are meant; {_supported()}",
        )
    return rows, [f"{entry}/" if entry.is_dir() else str(entry) for entry in left]


def not_read(left: Iterable[str], files: Iterable[str]) -> list[str]:
    """What of ``left`` is still unread, and holds nothing that is read, once ``files`` are."""
    read = [Path(file).resolve() for file in files]
    known = {str(path) for file in read for path in (file, *file.parents)}
    return [path for path in dict.fromkeys(left) if str(Path(path).resolve()) not in known]


def holds_rows(folder: Path) -> bool:
    """Whether data files lie in ``folder`` or below it. Hidden folders are caches, histories."""
    inside = (path.relative_to(folder.parent) for path in folder.rglob("*"))
    return any(
        (suffix(path) in KINDS or suffix(path, "") in _UNREAD)
        and not any(part.startswith(".") for part in path.parts)
        and (folder.parent / path).is_file()
        for path in islice(inside, _LOOKED_AT)
    )


def suffix(path: Path, packed: str = ".gz") -> str:
    """How the name ends, in lower case, before the ending ``packed``."""
    return Path(path.name.lower().removesuffix(packed)).suffix


def kind_of(path: Path) -> str:
    """How the file is read. Raises BadInput where it is not."""
    kind = KINDS.get(suffix(path))
    if kind is None:
        raise BadInput(f"{path}: unknown kind of data file", _supported())
    return kind


def _looks_like_rows(path: Path) -> bool:
    return suffix(path, "") in _UNREAD and not path.name.startswith(".") and path.is_file()


def _few(paths: list[Path]) -> str:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths[:_SHOWN]]
    return ", ".join([*names, *(["..."] if len(paths) > _SHOWN else [])])


def _supported() -> str:
    return f"supported are {', '.join(sorted(KINDS))}, each also as .gz"
