"""Faults at a chosen call: the process dies, the call fails, or a signal comes; power cuts, too.

``faults.c`` is compiled when an exam starts and preloaded into the processes that are harmed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("faults.c")
COUNT, KILL, FAIL, RAISE = range(4)
FOR_GOOD = -1


class Fault(NamedTuple):
    """What happens at the ``at``-th call that changes something below the folder (from 1)."""

    action: int = COUNT
    at: int = 0
    value: int = 0
    """An errno for FAIL, a signal's number for RAISE."""
    more: int = 0
    """FAIL goes on for so many calls (or FOR_GOOD); RAISE is done again so many calls later."""
    log: Path | None = None
    """Where each call is written to: its kind and path, one a line."""
    shadow: Path | None = None
    """Where what is synced is kept, for the power to be cut."""


def compiler() -> str | None:
    """The C compiler, or None: then there is no fault to be had."""
    return shutil.which("cc")


@cache
def library() -> Path:
    """The compiled ``faults.c``; made once for each version of it."""
    name = f"qlora-faults-{os.getuid()}-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    path = Path(tempfile.gettempdir()) / name
    if not path.exists():
        aside = path.with_suffix(f".{os.getpid()}")
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        command = [compiler() or "cc", *flags, "-o", str(aside), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        aside.replace(path)
    return path


def arm(folder: Path, fault: Fault, calls: int) -> None:
    """From now on count this process's calls in the C long at ``calls``; do what ``fault`` says."""
    arm_ = ctypes.CDLL(None).faults_arm
    arm_.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int,
        ctypes.c_long, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    log = os.open(fault.log, how) if fault.log else -1
    where = os.fsencode(fault.shadow) if fault.shadow else b""
    arm_(os.fsencode(folder), where, calls, log, fault.action, fault.at, fault.value, fault.more)


@contextmanager
def all_synced(folder: Path, shadow: Path) -> Iterator[None]:
    """Count what lies in ``folder`` now as safely on the disk; its inodes are not reused within."""
    shutil.rmtree(shadow, ignore_errors=True)
    shadow.mkdir()
    pins = []
    try:
        for path in [folder, *folder.rglob("*")]:
            pins.append(os.open(path, os.O_PATH | os.O_NOFOLLOW))
            inode = path.stat().st_ino
            if path.is_dir():
                entries = [
                    f"{'d' if e.is_dir() else 'f'} {e.inode()} {e.name}\n" for e in os.scandir(path)
                ]
                (shadow / f"d-{inode}").write_text("".join(entries))
            else:
                shutil.copyfile(path, shadow / f"f-{inode}")
        yield
    finally:
        for pin in pins:
            os.close(pin)


def lose_unsynced(folder: Path, shadow: Path) -> None:
    """Leave in ``folder`` only what was synced: each file's bytes, each folder's names."""
    aside = folder.with_name(f"{folder.name}-rebuilt")
    _rebuild(aside, folder.stat().st_ino, shadow)
    shutil.rmtree(folder)
    aside.rename(folder)


def _rebuild(folder: Path, inode: int, shadow: Path) -> None:
    folder.mkdir()
    names = shadow / f"d-{inode}"
    for line in names.read_text().splitlines() if names.exists() else ():
        kind, number, name = line.split(" ", 2)
        if kind == "d":
            _rebuild(folder / name, int(number), shadow)
        else:
            (folder / name).write_bytes(_synced_bytes(int(number), shadow))


def lose_unsynced_bytes(folder: Path, shadow: Path) -> None:
    """Leave all names, and of bytes that were not synced the first half: renames come first."""
    for path in folder.rglob("*"):
        if path.is_dir():
            continue
        known, now = _synced_bytes(path.stat().st_ino, shadow), path.read_bytes()
        if now != known:
            rest = now[len(known) :] if now.startswith(known) else b""
            path.write_bytes(known + rest[: len(rest) // 2])


def _synced_bytes(inode: int, shadow: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return (shadow / f"f-{inode}").read_bytes()
    return b""
