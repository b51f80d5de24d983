"""A long exam is a set of suites; a suite is a stream of cases; its figures are counts."""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from exams import results
from exams.jobs import Task, cores, perform_all


@dataclass(frozen=True)
class Case:
    """One case of a suite. ``figures`` are numbers worth keeping (bytes, seconds, errors)."""

    name: str
    passed: bool
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    exceptions: tuple[str, ...] = ()
    """What the suite promises and this case cannot keep, with the reasons: known, and counted."""


Cases = Callable[[int, int], Iterable[Case]]


def defined_in(module: str, name: str) -> Cases:
    """The cases of that name, imported when they are run: a baseline takes the harm from here."""

    def cases(count: int, seed: int) -> Iterable[Case]:
        found: Cases = getattr(importlib.import_module(module), name)
        return found(count, seed)

    return cases


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
    alone: str = ""
    """Why no other suite may run beside it: what it judges by the clock. Empty: any may."""


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
    processor_seconds: float = 0.0
    """Of this process and those that it started: comparable even where the machine is busy."""
    failures: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    """Case and reason, wherever a passed case was excepted from part of the promise."""
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
        self.exceptions += [f"{case.name}: {reason}" for reason in case.exceptions]
        for key, value in case.figures.items():
            self.worst[key] = max(value, self.worst.get(key, value))

    def to_dict(self) -> dict[str, Any]:
        """What the results file keeps: at most 50 failures by name."""
        return {**self.__dict__, "holds": self.holds, "failures": self.failures[:50]}

    def said(self) -> str:
        """Its figures in a line."""
        if self.skipped:
            return f"  SKIPPED: {self.skipped}"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        figures = "".join(f", {key} at most {value:g}" for key, value in self.worst.items())
        counts = f"{self.passed} of {self.cases} cases (asked {self.asked})"
        if self.exceptions:
            counts += f", {len(self.exceptions)} exceptions"
        time_ = f"{self.seconds:.0f} s ({self.processor_seconds:.0f} s of processors)"
        listed = "".join(f"\n    EXCEPTION {reason}" for reason in self.exceptions)
        return f"  {verdict}: {counts} in {time_}{figures}{listed}"


def run_suite(name: str, promise: str, cases: Cases, count: int, seed: int) -> Outcome:
    """Run every case; one that raises is a failed case, and the rest go on where they can."""
    outcome = Outcome(name, promise, count, seed)
    started, used = time.monotonic(), _processor_seconds()
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
    outcome.processor_seconds = round(_processor_seconds() - used, 1)
    return outcome


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def main(exam: str, suites: Sequence[Suite], arguments: Sequence[str] | None = None) -> int:
    """The command line of an exam: 0 when every suite holds, else 1."""
    options = _options(exam, suites, arguments)
    full = {suite.name: suite.full for suite in suites}
    if options.check:
        return _checked(options.check, full)
    chosen = [suite for suite in suites if suite.name in (options.suites or full)]
    if options.baseline:
        chosen = [suite for suite in chosen if suite.baseline]
    jobs = options.jobs or cores()
    if jobs > 1 and len(chosen) > 1:
        found = _side_by_side(chosen, options, jobs)
    else:
        found = [_kept(_perform(suite, options), options) for suite in chosen]
    held = [outcome for outcome in found if outcome is not None]
    failed = [outcome["suite"] for outcome in held if not outcome["holds"]]
    if len(chosen) > 1:
        print(f"{len(held) - len(failed)} of {len(held)} suites hold", *failed, sep="\n  ")
    whole = len(chosen) == len(suites) and not options.quick and options.count is None
    if options.json and whole:
        _checked(options.json, full)
    return 1 if failed else 0


def _options(
    exam: str, suites: Sequence[Suite], arguments: Sequence[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m exams.{exam}")
    names = [suite.name for suite in suites]
    parser.add_argument("suites", nargs="*", help=f"which ones (all): {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="the counts of CI")
    parser.add_argument("--count", type=int, help="cases per suite, whatever the suite says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true", help="plain transformers and PEFT")
    parser.add_argument("--jobs", type=int, default=1, help="suites at a time; 0: one per core")
    parser.add_argument("--json", type=Path, help="keep the figures here (merged by suite)")
    parser.add_argument(
        "--check", type=Path, metavar="FILE",
        help="run nothing: does this results file hold at full counts, on one clean commit?",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := set(options.suites) - set(names):
        parser.error(f"no suite named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def _perform(suite: Suite, options: argparse.Namespace) -> dict[str, Any] | None:
    """Run one suite here and say what it found; None where it was skipped."""
    cases = suite.baseline if options.baseline and suite.baseline else suite.cases
    count = options.count or (suite.quick if options.quick else suite.full)
    print(f"{suite.name}: {suite.promise}", flush=True)
    before = results.commit()
    outcome = run_suite(suite.name, suite.promise, cases, count, options.seed)
    print(outcome.said(), flush=True)
    if outcome.skipped:
        return None
    commit = before if before == results.commit() else f"{before}, changed meanwhile-dirty"
    return {**outcome.to_dict(), "commit": commit, **results.surroundings()}


def _side_by_side(
    chosen: Sequence[Suite], options: argparse.Namespace, jobs: int
) -> list[dict[str, Any] | None]:
    """Run ``jobs`` suites at a time, in the order in which they are listed."""
    tasks = [
        Task(suite.name, partial(_perform, suite, options), bool(suite.alone)) for suite in chosen
    ]
    found = []
    for name, figures in perform_all(tasks, jobs):
        if isinstance(figures, str):
            print(f"  FAILED {name}: {figures}", flush=True)
            lost = Outcome(name, "", asked=1, seed=options.seed, failures=[figures])
            figures = {**lost.to_dict(), "commit": results.commit(), **results.surroundings()}
        found.append(_kept(figures, options))
    return found


def _kept(figures: dict[str, Any] | None, options: argparse.Namespace) -> dict[str, Any] | None:
    """The same, written to the results file where one was asked for."""
    if figures and options.json:
        results.keep(options.json, figures)
    return figures


def _checked(path: Path, full: dict[str, int]) -> int:
    """Say whether a results file shows all that it should; 0 if so, else 1."""
    lacks = results.lacks(path, full)
    print(*results.table(path, list(full)), sep="\n")
    verdict = "does not show" if lacks else "shows"
    print(f"{path} {verdict} that every suite holds at its full count, on one clean commit")
    print(*(f"  {lack}\n" for lack in lacks), sep="", end="")
    return 1 if lacks else 0
