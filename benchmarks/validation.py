"""How fast data files are checked: parsed, recognised, and every turn looked at.

python benchmarks/validation.py [FILE.jsonl ...]     (without a file: 200,000 made rows)

CPU time of one core, the hash of the file included; `json.loads` beside it checks nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_core.data.columns import recognise
from qlora_core.data.rows import read_rows
from qlora_core.data.turns import conversation_of

ROWS = 200_000


def made(folder: Path) -> Path:
    path = folder / "made.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            turns = [("user", f"What is {i} plus 1? " + "word " * 16)]
            turns.append(("assistant", f"It is {i + 1}. " + "word " * 20))
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def check(path: Path) -> int:
    rows = read_rows(path).rows
    columns = recognise(rows)
    for row in rows:
        conversation_of(row.values, columns)
    return len(rows)


def plain(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return len([json.loads(line) for line in file])


def rate(work: Callable[[Path], int], path: Path) -> float:
    best: list[Any] = []
    for _ in range(3):
        start = time.process_time()
        best.append(work(path) / (time.process_time() - start))
    return float(max(best))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for path in [Path(name) for name in sys.argv[1:]] or [made(Path(folder))]:
            size = path.stat().st_size / 1e6
            print(f"{path.name} ({size:.1f} MB): {rate(check, path):,.0f} lines/s checked, "
                  f"{rate(plain, path):,.0f} lines/s with json.loads")  # fmt: skip
