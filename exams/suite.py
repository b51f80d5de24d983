"""A long exam is a set of suites; a suite is a stream of cases; its figures are counts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "qlora-core")


@dataclass(frozen=True)
class Case:
    """One case of a suite. ``figures`` are numbers worth keeping (bytes, seconds, errors)."""

    name: str
    passed: bool
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)


Cases = Callable[[int, int], Iterable[Case]]


class Unavailable(Exception):
    """This machine lacks what the suite needs: it is skipped, and says so."""


@dataclass(frozen=True)
class Suite:
    """``cases(count, seed)`` yields at least ``count`` cases; equal seeds give equal cases.

    ``baseline`` runs the same cases on plain transformers and PEFT: the proof that they can fail.
    """

    name: str
    promise: str
    cases: Cases
    full: int
    quick: int
    baseline: Cases | None = None


@dataclass
class Outcome:
    """What one suite found."""

    suite: str
    promise: str
    asked: int
    seed: int
    cases: int = 0
    passed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    """Why it was not run at all."""

    @property
    def holds(self) -> bool:
        """Whether every case passed, and as many ran as were asked for."""
        return self.passed == self.cases >= self.asked

    def add(self, case: Case) -> None:
        """Count one case; keep its failure and the largest of each figure."""
        self.cases += 1
        self.passed += case.passed
        if not case.passed:
            self.failures.append(f"{case.name}: {case.detail}")
        for key, value in case.figures.items():
            self.worst[key] = max(value, self.worst.get(key, value))

    def to_dict(self) -> dict[str, Any]:
        """What the results file keeps: at most 50 failures by name."""
        return {**self.__dict__, "holds": self.holds, "failures": self.failures[:50]}


def run_suite(name: str, promise: str, cases: Cases, count: int, seed: int) -> Outcome:
    """Run every case; one that raises is a failed case, and the rest go on where they can."""
    outcome = Outcome(name, promise, count, seed)
    started = time.monotonic()
    stream: Iterator[Case] = iter(cases(count, seed))
    try:
        for case in stream:
            outcome.add(case)
            if not case.passed:
                print(f"    FAILED {case.name}: {case.detail}", flush=True)
    except Unavailable as lack:
        outcome.skipped = str(lack)
    except Exception as error:
        outcome.add(Case("the suite itself", False, f"{type(error).__name__}: {error}"))
        print(f"    FAILED {outcome.failures[-1]}", flush=True)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def main(exam: str, suites: Sequence[Suite], arguments: Sequence[str] | None = None) -> int:
    """The command line of an exam: 0 when every suite holds, else 1."""
    parser = argparse.ArgumentParser(prog=f"python -m exams.{exam}")
    names = [suite.name for suite in suites]
    parser.add_argument("suites", nargs="*", help=f"which ones (all): {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="the counts of CI")
    parser.add_argument("--count", type=int, help="cases per suite, whatever the suite says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true", help="plain transformers and PEFT")
    parser.add_argument("--json", type=Path, help="keep the figures here (merged by suite)")
    options = parser.parse_args(arguments)
    if unknown := set(options.suites) - set(names):
        parser.error(f"no suite named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [suite for suite in suites if suite.name in (options.suites or names)]
    outcomes = []
    for suite in chosen:
        cases = suite.baseline if options.baseline else suite.cases
        if cases is None:
            continue
        count = options.count or (suite.quick if options.quick else suite.full)
        print(f"{suite.name}: {suite.promise}", flush=True)
        outcome = run_suite(suite.name, suite.promise, cases, count, options.seed)
        if outcome.skipped:
            print(f"  SKIPPED: {outcome.skipped}", flush=True)
            continue
        outcomes.append(outcome)
        verdict = "holds" if outcome.holds else "DOES NOT HOLD"
        figures = "".join(f", {key} at most {value:g}" for key, value in outcome.worst.items())
        counts = f"{outcome.passed} of {outcome.cases} cases (asked {count})"
        print(f"  {verdict}: {counts} in {outcome.seconds:.0f} s{figures}", flush=True)
        if options.json:
            keep(options.json, outcome)
    failed = [outcome.suite for outcome in outcomes if not outcome.holds]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} suites hold", *failed, sep="\n  ")
    return 1 if failed else 0


def keep(path: Path, outcome: Outcome) -> None:
    """Merge one suite's figures into a results file, with what they were measured on."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    kept[outcome.suite] = {**outcome.to_dict(), "measured": when, "on": surroundings()}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def surroundings() -> dict[str, Any]:
    """The versions and the machine that figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version(), "cores": os.cpu_count()}
