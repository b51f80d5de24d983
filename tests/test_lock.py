"""The lock that CI installs from pins what constraints.txt pins, each by its hashes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"(?m)^([\w.-]+)==([^\s\\]+)")


def pinned(name: str) -> dict[str, str]:
    found = PINNED.findall((ROOT / name).read_text(encoding="utf-8"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_lock_pins_all_but_torch_as_the_constraints_do() -> None:
    expected = pinned("constraints.txt")
    del expected["torch"]
    assert expected == pinned("requirements-ci.lock")


def test_every_package_of_the_lock_has_a_hash() -> None:
    text = (ROOT / "requirements-ci.lock").read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=[A-Za-z])", text)[1:]
    assert [e.split()[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", e)] == []
