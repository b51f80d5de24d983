"""Our own checks are taken out one by one: for each, a test must fail."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from exams.soak.guards import GUARDS, Guard
from exams.suite import Case, Suite

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("qlora_core", "plugins", "base_model", "tests", "exams", "docs", "pyproject.toml",
         "README.md")  # fmt: skip
IMPORT_NAMES = {"qlora_plugins": "plugins", "qlora_base": "base_model"}
PASSED, FAILED = 0, 1
"""pytest's exit codes; others say that it could not run the tests at all."""
SERVER = r"""
import os, sys
import bitsandbytes, peft, pytest, torch, transformers
torch.set_num_threads(1)
for line in sys.stdin:
    tests = line.rstrip("\n").split("\t")
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # again: see exams/forks.py
        log = os.open("mutation.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the tests that each line names in a child that has loaded the libraries already."""


class Copy:
    """A copy of this tree in which tests can be run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / part, ignore=ignored)
            elif source.is_file():
                shutil.copy(source, folder / part)
        for name, part in IMPORT_NAMES.items():
            (folder / name).symlink_to(folder / part)
        data = os.environ.get("QLORA_TEST_DATA", str(ROOT.parent / "shared"))
        inherited = {k: v for k, v in os.environ.items() if k != "QLORA_SHARD"}  # of other tests
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=inherited | {
                "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "QLORA_TEST_DATA": data,
            },
        )  # fmt: skip

    def run(self, tests: tuple[str, ...]) -> int:
        """The exit code of pytest for these tests."""
        if self.server.stdin is None or self.server.stdout is None:
            raise RuntimeError("the test server has no pipes")
        print(*tests, sep="\t", file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def last_words(self) -> str:
        """The end of what pytest printed."""
        return (self.folder / "mutation.log").read_text(errors="replace").strip()[-300:]

    @contextmanager
    def without(self, guard: Guard) -> Iterator[None]:
        """The tree without one check. Raises ValueError where its text is not there once."""
        path = self.folder / guard.file
        text = path.read_text("utf-8")
        if text.count(guard.text) != 1:
            raise ValueError(f"{guard.file} holds {text.count(guard.text)} times {guard.text!r}")
        path.write_text(text.replace(guard.text, guard.instead), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


def cases(count: int, seed: int) -> Iterator[Case]:
    """First the tests as they are, all of which must pass; then each guard taken out."""
    guards = list(GUARDS)
    random.Random(seed).shuffle(guards)
    guards = guards[:count]
    with TemporaryDirectory(prefix="mutation-") as folder:
        copy = Copy(Path(folder))
        try:
            tests = tuple(dict.fromkeys(test for guard in guards for test in guard.tests))
            code = copy.run(tests)
            said = "" if code == PASSED else copy.last_words()
            yield Case("nothing taken out", code == PASSED, f"pytest ended with {code}: {said}")
            for guard in guards:
                yield _case(copy, guard)
        finally:
            copy.close()


def _case(copy: Copy, guard: Guard) -> Case:
    try:
        with copy.without(guard):
            code = copy.run(guard.tests)
    except ValueError as gone:
        return Case(guard.name, False, f"the guard is not where it was: {gone}")
    words = {PASSED: "no test failed", FAILED: "a test failed"}
    said = words.get(code, f"pytest ended with {code}: {copy.last_words()}")
    return Case(guard.name, code == FAILED, said)


SUITE = Suite(
    name="mutation",
    promise="each of our own checks, taken out, makes a test fail",
    cases=cases,
    full=1 + len(GUARDS),
    quick=4,
)
