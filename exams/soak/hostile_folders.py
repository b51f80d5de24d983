"""Model folders made to harm: every one is read or refused, at once, and nothing of it runs."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import qlora_base

from exams.soak.hostile_configs import FOLDERS
from exams.soak.traps import in_a_child, peak_of, settle, watch
from exams.suite import Case, Suite
from qlora_core.cli.main import main
from qlora_core.registry.detect import detect, installed

SECONDS, MEGABYTES = 0.3, 100.0
"""What plain ``detect`` may take."""
TRIES = 3
"""How often a fresh process may be started: a shared machine has other things to do."""
BUILD_SECONDS = 30.0
"""What building the skeleton may take, warm; the limits on numbers keep it finite."""

FRESH = """
import sys
from qlora_core.cli.main import main
code = main(["detect", sys.argv[1]])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("transformers" in sys.modules, int(peak.split()[1]) / 1000)
sys.exit(code)
"""


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every folder with `detect`; then its skeleton and a dry run; then fresh processes."""
    del seed
    installed()
    settle(lambda: detect({"model_type": "nobody-knows-it"}))
    with tempfile.TemporaryDirectory() as place:
        made = list(_made(Path(place)))
        for name, folder in made:
            yield _detected(name, folder)
        done = len(made)
        if count > done:
            for name, folder in made:
                yield _commanded(f"{name}, detect --build", folder, ["detect", "--build"])
                yield _commanded(f"{name}, train --dry-run", folder, _dry_run(Path(place)))
                done += 2
            for name, folder in made[:: max(1, len(made) // 24)]:
                yield _fresh(name, folder)


def _made(place: Path) -> Iterator[tuple[str, Path]]:
    for number, (name, write) in enumerate(FOLDERS.items()):
        folder = place / f"{number:02d}"
        folder.mkdir()
        write(folder)
        if not (folder / "tokenizer.json").exists():
            shutil.copyfile(qlora_base.MODEL / "tokenizer.json", folder / "tokenizer.json")
        yield name, folder


def _detected(name: str, folder: Path) -> Case:
    found = watch(lambda: detect(folder), patience=20)
    fault = found.fault(SECONDS) or _touched(folder)
    peak = peak_of(lambda: detect(folder))
    if not fault and peak > MEGABYTES:
        fault = f"allocated {peak:.0f} MB"
    return Case(f"{name}, detect", not fault, fault, {"seconds": found.seconds, "megabytes": peak})


def _commanded(name: str, folder: Path, command: list[str]) -> Case:
    where = ["--model", str(folder)] if command[0] == "train" else [str(folder)]
    errors = io.StringIO()

    def run() -> int:
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            return main([*command[:1], *where, *command[1:]])

    found = watch(run, patience=600)
    fault = found.fault(BUILD_SECONDS) or _touched(folder)
    if not fault and found.result not in (0, 2):
        fault = f"exit code {found.result}"
    if not fault and found.result == 2 and errors.getvalue().count("error: ") != 1:
        fault = f"no single message: {errors.getvalue()[:300]!r}"
    return Case(name, not fault, fault, {"seconds of build": found.seconds})


def _dry_run(place: Path) -> list[str]:
    data = place / "rows.jsonl"
    if not data.exists():
        row = {"messages": [{"role": r, "content": "hello"} for r in ("user", "assistant")]}
        data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    more = ["--data", str(data), "--output", str(place / "out"), "--offline"]
    return ["train", "--dry-run", *more]


def _fresh(name: str, folder: Path) -> Case:
    """New processes, Python's own start included: the quickest of three must be quick enough.

    Judged are the clock, which a busy machine only makes slower, and the peak of memory. A type
    that nobody describes is read off its structure, which takes the engine: it is not held to them.
    """
    tries: list[tuple[float, float]] = []
    while True:
        start, before = time.monotonic(), _processor_seconds()
        command = [sys.executable, "-c", FRESH, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tries.append((time.monotonic() - start, _processor_seconds() - before))
        seconds = min(tries)[0]
        *_, engine, peak = done.stdout.split()
        if engine == "True" or seconds <= SECONDS or len(tries) == TRIES:
            break
    fault = "" if done.returncode in (0, 2) else f"exit code {done.returncode}"
    fault = fault or ("a traceback" if "Traceback" in done.stderr else _touched(folder))
    if not fault and engine == "False" and float(peak) > MEGABYTES:
        fault = f"peak of {peak} MB"
    if not fault and engine == "False" and seconds > SECONDS:
        fault = f"took {seconds:.2f} s by the clock"
    kind = "with the engine" if engine == "True" else "as a process"
    used = min(processor for _, processor in tries)
    figures = {
        f"seconds {kind}": seconds, f"processor seconds {kind}": used,
        f"megabytes {kind}": float(peak),
    }  # fmt: skip
    return Case(f"{name}, a fresh process", not fault, fault, figures)


def _processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _touched(folder: Path) -> str:
    """The canary of the folder, if its code has run."""
    ran = [path.name for path in folder.glob("*-was-run")]
    return f"ran code: {ran[0]}" if ran else ""


def baseline(count: int, seed: int) -> Iterable[Case]:
    """AutoConfig of transformers on the same folders, each in a child with 20 s and 4 GB."""
    del count, seed
    code = (
        "import sys, transformers\n"
        "try:\n    transformers.AutoConfig.from_pretrained(sys.argv[1])\n"
        "except (OSError, ValueError) as error:\n    print('refused', type(error).__name__)\n"
    )
    with tempfile.TemporaryDirectory() as place:
        for name, folder in _made(Path(place)):
            yield in_a_child(name, ["-c", code, str(folder)], seconds=20)


SUITE = Suite(
    "hostile-folders",
    "a hostile model folder is read or refused within 0.3 s and 100 MB, and nothing of it runs",
    cases,
    full=200,
    quick=60,
    baseline=baseline,
    alone="holds fresh processes to 0.3 s by the clock",
)
