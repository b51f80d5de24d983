"""The faulty files and rows of `bad_data`, read by ``datasets``: the baselines."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
from jinja2 import Environment

from exams.soak.bad_data import is_row, mutated, sound_rows
from exams.soak.bad_files import AROUND, CHAT, FAULTS, FILES, GOOD, ROWS, jsonl
from exams.suite import Case

PLAIN = """
import sys, traceback, datasets
kind, path, cache = sys.argv[1:]
try:
    rows = datasets.load_dataset(kind, data_files=path, cache_dir=cache)["train"]
    print(f"accepted: {len(rows)} rows")
except Exception as error:
    print("refused:", "".join(traceback.format_exception_only(error)), error.__cause__)
"""


def files(count: int, seed: int) -> Iterator[Case]:
    """The same files read by ``datasets``, each in a child: does it name file and line?"""
    del count, seed
    with tempfile.TemporaryDirectory() as place:
        for name, (line, _) in FAULTS.items():
            path = Path(place) / "train.jsonl"
            path.write_bytes(b"\n".join([*GOOD[:4], line, *GOOD[4:AROUND]]) + b"\n")
            yield _plain(f"{name}, middle", path, "json", 5)
        for name, broken in FILES.items():
            path = Path(place) / broken.name
            path.write_bytes(broken.content)
            kind = path.name.split(".")[1].replace("tsv", "csv").replace("jsonl", "json")
            yield _plain(name, path, kind.replace("txt", "text"), broken.line)


def _plain(name: str, path: Path, kind: str, line: int) -> Case:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", PLAIN, kind, str(path), cache]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return Case(name, False, f"the process ended with {done.returncode}")
    said = done.stdout
    if "accepted" in said:
        return Case(name, False, said.strip())
    told = {"file": path.name in said, "line": f"line {line}" in said or f"row {line - 1}" in said}
    named = [what for what, is_told in told.items() if is_told]
    return Case(name, len(named) == 2, f"refused whole, naming {named or 'neither'}")


def rows(count: int, seed: int) -> Iterator[Case]:
    """Each bad row among good ones, read by ``datasets`` and rendered by the chat template."""
    del count, seed
    chat = Environment().from_string(CHAT)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "train.jsonl"
        for kind, (good, table) in ROWS.items():
            for name, (row, _) in table.items():
                path.write_bytes(jsonl(good, good, row, good, good))
                try:
                    with tempfile.TemporaryDirectory() as cache:
                        found = datasets.load_dataset("json", data_files=str(path), cache_dir=cache)
                        made = list(found["train"])
                    for one in made:
                        chat.render(messages=one.get("messages") or [])
                    case = Case(f"{kind}: {name}", False, f"accepted: {len(made)} rows")
                except Exception as error:
                    said = f"{error} {error.__cause__}"
                    told = path.name in said and ("line 3" in said or "row 2" in said)
                    case = Case(f"{kind}: {name}", told, f"{type(error).__name__}: {error}"[:200])
                yield case


def mutations(count: int, seed: int) -> Iterator[Case]:
    """The JSON-lines files among them: passed is as many rows as are sound, or the file's name."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "train.jsonl"
        for number in range(0, count, 3):
            draw = random.Random(f"{seed}:{number}")
            path.write_bytes(mutated(sound_rows("jsonl", draw), draw))
            lines = [line for line in path.read_bytes().split(b"\n") if line.strip(b" \t\r\n")]
            sound = sum(map(is_row, lines))
            try:
                with tempfile.TemporaryDirectory() as cache:
                    found = datasets.load_dataset("json", data_files=str(path), cache_dir=cache)
                kept = len(found["train"])
                said = f"{kept} rows kept of {sound} sound ones in {len(lines)}"
                case = Case(f"jsonl {number}", kept == sound, said)
            except Exception as error:
                told = path.name in f"{error} {error.__cause__}"
                case = Case(f"jsonl {number}", told, f"{type(error).__name__}: {error}"[:200])
            yield case
