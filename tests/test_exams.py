"""The machinery of the long exams: side by side, nothing lost, one commit, docs that agree."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("the exams fork, and use alarms and pipes of Unix", allow_module_level=True)

from exams import results
from exams.forks import fork
from exams.soak.guards import GUARDS
from exams.suite import Case, Suite, Unavailable, main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "reliability.md"
SOAK = ROOT / "benchmarks" / "results" / "soak.json"


def sound(count: int, seed: int) -> Iterator[Case]:
    for number in range(count):
        yield Case(f"{number}", True, figures={"seed": float(seed)})


def failing(count: int, seed: int) -> Iterator[Case]:
    yield from sound(count - 1, seed)
    yield Case("the last", False, "as it is meant")


def dying(count: int, seed: int) -> Iterator[Case]:
    yield from sound(count - 1, seed)
    os._exit(7)


def impossible(count: int, seed: int) -> Iterator[Case]:
    raise Unavailable("this machine has no such thing")
    yield from sound(count, seed)


def suite(name: str, cases: Any = sound, **more: Any) -> Suite:
    return Suite(name, "a promise", cases, full=3, quick=2, **more)


def kept(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_side_by_side_or_not_the_same_is_found(tmp_path: Path) -> None:
    suites = [suite("one"), suite("two", failing), suite("three", impossible), suite("four")]
    found = []
    for jobs in ("1", "3"):
        path = tmp_path / f"{jobs}.json"
        assert main("exam", suites, ["--jobs", jobs, "--json", str(path)]) == 1
        differ = ("seconds", "processor_seconds", "measured")
        found.append(
            {name: {k: v for k, v in figures.items() if k not in differ}
             for name, figures in kept(path).items()}
        )  # fmt: skip
    assert found[0] == found[1]
    assert {name: figures["holds"] for name, figures in found[0].items()} == {
        "one": True, "two": False, "four": True,
    }  # fmt: skip


def test_a_suite_whose_process_dies_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    suites = [suite("lives"), suite("dies", dying)]
    assert main("exam", suites, ["--jobs", "2", "--json", str(path)]) == 1
    assert kept(path)["dies"]["failures"] == ["its process ended with 7"]
    assert "1 of 2 suites hold\n  dies" in capsys.readouterr().out


def test_a_suite_that_judges_by_the_clock_runs_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def logged(count: int, seed: int) -> Iterator[Case]:
        for word in ("begins", "ends"):
            with log.open("a") as file:
                file.write(f"{count} {word}\n")
            beside = {"1 begins", "2 begins"} if count < 3 else set()
            for _ in range(600):  # until both that may run at a time have begun
                if beside <= set(log.read_text().splitlines()):
                    break
                time.sleep(0.05)
        yield from sound(count, seed)

    suites = [
        Suite("one", "", logged, full=1, quick=1),
        Suite("two", "", logged, full=2, quick=2),
        Suite("alone", "", logged, full=3, quick=3, alone="it judges by the clock"),
    ]
    assert main("exam", suites, ["--jobs", "3"]) == 0
    lines = log.read_text().splitlines()
    assert lines[:2] == ["3 begins", "3 ends"]
    assert sorted(lines[2:4]) == ["1 begins", "2 begins"]


def test_the_check_names_all_that_a_results_file_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    suites = [suite("one"), suite("two"), suite("three"), suite("four")]
    for name, count in (("one", "3"), ("two", "2"), ("three", "3")):
        main("exam", suites, [name, "--count", count, "--json", str(path)])
    found = kept(path)
    found["one"]["commit"], found["two"]["commit"] = "a" * 40, "b" * 40 + "-dirty"
    found["three"] |= {"holds": False, "passed": 2, "commit": "a" * 40}
    path.write_text(json.dumps(found))
    assert results.lacks(path, {s.name: s.full for s in suites}) == [
        "four: was not run",
        "three: 2 of 3, asked 3",
        "two: asked 2 of 3",
        f"not one commit: {'a' * 18}, {'b' * 18}",
        f"not a clean commit: {'b' * 40}-dirty",
    ]
    assert main("exam", suites, ["--check", str(path)]) == 1
    assert "does not show" in capsys.readouterr().out


def test_the_check_is_content_with_full_counts_on_one_clean_commit(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    suites = [suite("one"), suite("two")]
    main("exam", suites, ["--json", str(path)])
    found = kept(path)
    path.write_text(json.dumps({n: f | {"commit": "a" * 40} for n, f in found.items()}))
    assert main("exam", suites, ["--check", str(path)]) == 0


def test_what_the_plain_stack_passed_stands_beside_it_and_paths_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(count: int, seed: int) -> Iterator[Case]:
        del count, seed
        yield Case("a file", False, f"{tempfile.gettempdir()}/a/b is gone")

    path, beside = tmp_path / "kept.json", tmp_path / "kept_baseline.json"
    suites = [suite("one", baseline=lost), suite("two")]
    main("exam", suites, ["--json", str(path)])
    main("exam", suites, ["--baseline", "--json", str(beside)])
    assert kept(beside)["one"]["failures"] == ["a file: a/b is gone"]
    main("exam", suites, ["--check", str(path)])
    said = capsys.readouterr().out
    assert "| one | 3 | 3 | 0 | 0 of 1 |" in said
    assert "| two | 3 | 3 | 0 |  |" in said


def test_every_guard_stands_where_the_exam_takes_it_out() -> None:
    found = {g.name: (ROOT / g.file).read_text("utf-8").count(g.text) for g in GUARDS}
    assert {name: times for name, times in found.items() if times != 1} == {}


def test_the_tests_that_must_notice_a_missing_guard_are_there() -> None:
    named = {test.partition("[")[0] for guard in GUARDS for test in guard.tests}
    for file, _, name in (test.partition("::") for test in sorted(named)):
        assert f"def {name}(" in (ROOT / file).read_text("utf-8") or not name, f"{file}::{name}"


def test_the_documents_tell_the_figures_that_were_kept() -> None:
    """`python -m exams.soak --check benchmarks/results/soak.json` prints the table anew."""
    rows = r"\| [\w -]+ \| [\d,]+ \| [\d,]+ \| [\d,]+ \| ([\d,]+ of [\d,]+)? \|"
    told = [line for line in DOCS.read_text("utf-8").splitlines() if re.fullmatch(rows, line)]
    assert sorted(told) == sorted(results.table(SOAK, list(kept(SOAK)))[2:])


def test_threads_of_a_fork_may_compute_at_once() -> None:
    """After `os.fork` alone, in some two of three such forks PyTorch has no pool for a thread."""
    values = torch.ones(200_000)
    torch.set_num_threads(torch.get_num_threads())  # makes the pool that forks lose
    codes = []
    for _ in range(20):
        child = fork()
        if not child:
            os._exit(failures_of_threads(values.bfloat16))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [0] * 20


def failures_of_threads(work: Callable[[], object], count: int = 8) -> int:
    """How many of ``count`` threads fail that begin ``work`` together."""
    sys.setswitchinterval(1e-6)
    gate = threading.Barrier(count)
    failed = []

    def begin() -> None:
        gate.wait()
        try:
            work()
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)
