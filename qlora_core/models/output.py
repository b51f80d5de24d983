"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_core.errors import BadInput


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``output`` when the block ends without an exception.

    Raises BadInput where ``output`` exists already, and where the disk does not take it.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists", "name a new folder with --output")
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        yield aside
        if target.is_dir():
            target.rmdir()
        os.replace(aside, target)
    except OSError as error:
        raise BadInput(
            f"cannot write {target}: {error.strerror or error}",
            "make room, mend its permissions, or name another folder with --output",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
