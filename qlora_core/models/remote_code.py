"""Python code that a model's folder brings: run only when the user names what is trusted.

The name is a SHA-256 over the folder's ``.py`` files: whoever has read them allows these very
bytes, and no later version, other revision or other folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from qlora_core.errors import BadInput
from qlora_core.registry.files import read_json

Trust = bool | str | None
"""The hash of the code that may run; ``True``, for callers in Python, allows any."""


def require_trusted(folder: Path, trust: Trust) -> bool:
    """Whether the code in ``folder`` may run.

    Raises BadInput where ``trust`` is the hash of other code, and where the folder's settings
    name code that does not lie in it.
    """
    if not trust:
        return False
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        stated = read_json(path, within=folder).get("auto_map") if path.exists() else None
        if "--" in str(stated):
            raise BadInput(
                f"{path} names code of another repository ({str(stated)[:200]})",
                "copy that code into the folder, read it, and name it there",
            )
    if trust is not True and (files := _files(folder)) and trust != code_hash(folder):
        names = ", ".join(str(file.relative_to(folder)) for file in files[:8])
        raise BadInput(
            f"the code in {folder} ({names}) is not the one that was allowed",
            f"{how_to_allow(folder)}",
        )
    return True


def how_to_allow(folder: Path) -> str:
    """The remedy for code that was not allowed: what to read, and what to give then."""
    return f"read those files; if you trust them: --trust-remote-code {code_hash(folder)}"


def code_hash(folder: Path) -> str:
    """SHA-256 over names and contents of all ``.py`` files in ``folder`` and below."""
    digest = hashlib.sha256()
    for file in _files(folder):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}:{content}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.is_file())
