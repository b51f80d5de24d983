"""Write files so that a crash at any moment leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from qlora_core.errors import BadInput, TrainingStopped

log = logging.getLogger("qlora-core")
MANIFEST = "MANIFEST.json"
STAGING, TRASH, REPLACED = ".staging-", ".trash-", ".replaced-"
MARGIN = 2**20
"""Bytes kept free beyond what a save holds: directories, manifest, file system blocks."""
INODES = 32
"""Files and folders that a save may make."""


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON in one rename."""
    aside = path.with_name(f"{STAGING}{uuid4().hex[:8]}-{path.name}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(_text(value))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def publish(
    folder: Path, write: Callable[[Path], None], *, size: int, facts: Mapping[str, Any]
) -> None:
    """Make ``folder`` appear whole: ``write`` fills it, under another name beside it.

    Every file is synced to the disk, the manifest with its SHA-256 is written last, and one
    rename makes the folder visible. ``size`` bytes must be free; ``facts`` go into the manifest.
    Raises TrainingStopped where the disk does not take it; what was there before stays.
    """
    parent = folder.parent
    staging = parent / f"{STAGING}{uuid4().hex[:8]}"
    try:
        with writing(folder):
            make_folder(parent)
            demand_space(parent, size)
            staging.mkdir()
            write(staging)
            _seal(staging, facts)
            _put(staging, folder)
            sync(parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    clean(parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into TrainingStopped: what could not be written, why, what to do.

    Libraries in Rust raise exceptions of their own, which only spell the system's error.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise TrainingStopped(
            f"cannot write {path}: {error} ({_free(path)})",
            "mend the disk or free some space, then go on with --resume; "
            "what was saved before is whole",
        ) from error


def make_folder(path: Path) -> None:
    """Make ``path`` and its parents where they are missing, so that a power cut leaves them."""
    missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def damage(folder: Path) -> str | None:
    """Why ``folder`` is not what ``publish`` left, or None: every size and SHA-256 is compared."""
    try:
        files = read_manifest(folder)["files"]
        present = {_name(path, folder) for path in folder.rglob("*")}
        if missing := sorted(set(files) - present):
            return f"{missing[0]} is missing"
        for name, facts in files.items():
            path = folder / name
            if path.stat().st_size != facts["size"] or sha256(path) != facts["sha256"]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no valid {MANIFEST} ({type(error).__name__})"
    return None


def stranger(folder: Path, run_id: str) -> str | None:
    """Why ``folder`` is not of run ``run_id``, or None: its manifest says so, or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        other = read_manifest(folder).get("run_id")
        return None if other == run_id else f"it belongs to another run ({other})"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``. Raises OSError, and ValueError where a bit of it has changed."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    value = json.loads(text)
    if not isinstance(value, dict) or text != _text(value):
        raise ValueError("not as it was written")
    if value.pop("digest", None) != _digest(value):
        raise ValueError("its own SHA-256 differs")
    return value


def clean(folder: Path) -> None:
    """Remove what an interrupted save or removal left in ``folder``; bring back what was replaced
    by nothing.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        place = folder / path.name.removeprefix(REPLACED)
        if path.name.startswith(REPLACED) and not place.exists():
            path.rename(place)
        elif path.name.startswith((STAGING, TRASH, REPLACED)):
            if path.is_dir():
                _remove(path)
            else:
                path.unlink(missing_ok=True)


def _put(staging: Path, folder: Path) -> None:
    """Rename ``staging`` to ``folder``. What was there goes when the new one has its name."""
    aside = folder.with_name(f"{REPLACED}{folder.name}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise


def discard(folder: Path) -> None:
    """Remove a published folder: out of sight in one rename, then its files."""
    trash = folder.with_name(f"{TRASH}{uuid4().hex[:8]}")
    folder.rename(trash)
    _remove(trash)


def _remove(folder: Path) -> None:
    """For good, also after a power cut. What the disk refuses stays, and is said."""
    try:
        shutil.rmtree(folder)
        sync(folder.parent)
    except OSError as error:
        log.warning(
            "%s could not be removed (%s): the next save or run does it", folder, error.strerror
        )


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder to the disk. Windows cannot do the latter and need not."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems sync no folders
    finally:
        os.close(descriptor)


def probe(folder: Path) -> None:
    """Make ``folder`` and write a file there; leaves no file. Raises BadInput if it cannot."""
    file = folder / f"{STAGING}probe"
    try:
        make_folder(folder)
        with file.open("wb") as stream:
            stream.write(b"probe")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInput(
            f"cannot write to the output folder {folder}: {reason} ({_free(folder)})",
            "give another --output, or mend its permissions or its disk",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def demand_space(folder: Path, size: int) -> None:
    """Raise TrainingStopped unless ``size`` bytes, a margin and some inodes are free."""
    free, inodes = _space(folder)
    lacking = ""
    if free < size + MARGIN:
        lacking = f"{size + MARGIN:,} bytes and {free:,} are free"
    elif inodes < INODES:
        lacking = f"{INODES} inodes and {inodes:,} are free"
    if lacking:
        raise TrainingStopped(
            f"a save in {folder} needs {lacking}", "free some space, then go on with --resume"
        )


def _space(path: Path) -> tuple[int, float]:
    """Bytes and inodes that are free where ``path`` is or will be."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    inodes = math.inf
    if hasattr(os, "statvfs"):
        system = os.statvfs(existing)
        inodes = system.f_favail if system.f_files else math.inf  # 0: it has no such limit
    return shutil.disk_usage(existing).free, inodes


def _free(path: Path) -> str:
    with contextlib.suppress(OSError):
        free, inodes = _space(path)
        return f"{free:,} bytes and {inodes:,} inodes are free there"
    return "its free space is unknown"


def _seal(staging: Path, facts: Mapping[str, Any]) -> None:
    umask = os.umask(0)
    os.umask(umask)
    files = {}
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors makes files that nobody else can read
            files[_name(path, staging)] = {"sha256": sha256(path), "size": path.stat().st_size}
        sync(path)
    value = {"schema": 1, **facts, "files": files}
    write_json(staging / MANIFEST, value | {"digest": _digest(value)})


def _name(path: Path, folder: Path) -> str:
    """In a manifest: the same on every system."""
    return path.relative_to(folder).as_posix()


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()
