"""A lock on a folder that is gone when its process is gone, however it ended."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from pathlib import Path
from typing import IO

from qlora_core.errors import BadInput
from qlora_core.training.files import sync

log = logging.getLogger("qlora-core")
NAME = ".lock"
BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
"""How the systems say that another process holds a lock; anything else is a file system
without locks."""


class FolderLock:
    """Held from construction to ``release``. Raises BadInput where another process holds it.

    The operating system frees it when the process ends, by whatever signal.
    The file tells who holds it: process id, host and run id.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / NAME
        self.file = self._acquire()
        self.sign(run_id)

    def sign(self, run_id: str) -> None:
        """Tell others whose folder this is. On a full disk they are not told."""
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "run_id": run_id}
        with contextlib.suppress(OSError):
            self.file.seek(1)  # the first byte is the one that is locked
            self.file.truncate()
            self.file.write(json.dumps(owner))
            self.file.flush()

    def release(self) -> None:
        """Free the folder and remove the lock's file."""
        with contextlib.suppress(OSError):  # Windows removes no open file: it stays, unlocked
            self.path.unlink()
            sync(self.path.parent)
        with contextlib.suppress(OSError):  # a full disk; the lock is gone all the same
            self.file.close()

    def _acquire(self) -> IO[str]:
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = self.path.open("a+", encoding="utf-8")
            except FileNotFoundError:  # a run that ended at once took its empty folder with it
                continue
            except OSError as error:
                raise BadInput(
                    f"cannot write to the output folder {self.path.parent}: {error.strerror}",
                    "give another --output, or mend its permissions or its disk",
                ) from None
            if not _try_lock(file):
                owner = _owner(file)
                file.close()
                raise BadInput(
                    f"another run is at work in {self.path.parent}{owner}",
                    "give another --output, or wait until it has ended",
                )
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()  # its owner removed it between our open and our lock


def _owner(file: IO[str]) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(1)
        owner = json.loads(file.read())
        return f" (process {owner['pid']} on {owner['host']}, run {owner['run_id']})"
    return ""


def _try_lock(file: IO[str]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        log.warning("%s cannot be locked (%s): start no second run there", file.name, error)
    return True
