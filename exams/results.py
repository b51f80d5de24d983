"""The results file of an exam: what each suite found, on which commit, and whether that is one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "qlora-core")
ROOT = Path(__file__).resolve().parents[1]
PLACES = (str(ROOT), sys.prefix, sys.base_prefix, "/dev/shm", tempfile.gettempdir())
"""Where an exam's files lie: of no interest to anybody elsewhere."""
FIGURES = "benchmarks/results"
"""What an exam itself writes: a change there does not make the tree dirty."""


def commit() -> str:
    """The commit of this tree, ``-dirty`` behind it where a tracked file differs; empty: unknown.

    Untracked files do not count, nor do the results of exams.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{FIGURES}"
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Merge one suite's figures into a results file. One process may write it.

    Of this machine's paths only what lies below the usual places is kept.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[found["suite"]] = dict(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    for place in PLACES:
        text = text.replace(f"{place}/", "")
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)


def surroundings() -> dict[str, Any]:
    """When it was measured, the versions, and the machine that figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    on = {**found, "python": platform.python_version(), "cores": os.cpu_count()}
    return {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "on": on}


def lacks(path: Path, asked: Mapping[str, int]) -> list[str]:
    """Why a results file does not show that every suite holds, at ``asked``, on one commit."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    wrong = [f"{name}: was not run" for name in asked if name not in kept]
    wrong += [f"{name}: there is no such suite" for name in kept if name not in asked]
    for name in sorted(kept.keys() & asked.keys()):
        found = kept[name]
        if not found["holds"]:
            wrong.append(f"{name}: {found['passed']} of {found['cases']}, asked {found['asked']}")
        if found["asked"] < asked[name]:
            wrong.append(f"{name}: asked {found['asked']} of {asked[name]}")
    commits = {found.get("commit", "") for found in kept.values()}
    if len(commits) != 1:
        wrong.append(f"not one commit: {', '.join(sorted(c[:18] or 'unknown' for c in commits))}")
    wrong += [f"not a clean commit: {c or 'unknown'}" for c in commits if not _clean(c)]
    return wrong


def _clean(commit_: str) -> bool:
    return bool(commit_) and not commit_.endswith("-dirty")


def table(path: Path, names: Sequence[str]) -> list[str]:
    """The figures as a table of Markdown, in the order of ``names``.

    Beside them what the plain stack passed, as kept in ``..._baseline.json`` in the same folder.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    beside = path.with_name(f"{path.stem}_baseline.json")
    plain = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    rows = []
    for name in names:
        if found := kept.get(name):
            theirs = plain.get(name)
            counts = f"{theirs['passed']:,} of {theirs['cases']:,}" if theirs else ""
            rows.append(
                f"| {name} | {found['cases']:,} | {found['passed']:,} | {found['seconds']:,.0f} "
                f"| {counts} |"
            )
    head = "| suite | cases | passed | seconds | the plain stack passes |"
    return [head, "|---|---|---|---|---|", *rows]
