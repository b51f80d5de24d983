"""What a run shows while it works: a bar in a terminal, lines in a file."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """Where a run reports to. ``Silent`` shows nothing."""

    def say(self, text: str) -> None:
        """Show a line."""

    def start(self, first: int, total: int) -> None:
        """The steps ``first`` to ``total`` begin."""

    def step(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""

    def stop(self) -> None:
        """Nothing more will come."""


class Silent:
    """Shows nothing: for notebooks' quiet runs, tests, and all processes but the first."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, first: int, total: int) -> None:
        """Nothing."""

    def step(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines:
    """One line now and then: the first, the last, and at most one every ``pause`` seconds."""

    def __init__(self, stream: TextIO | None = None, pause: float = 5.0) -> None:
        self.stream = stream or sys.stderr
        self.pause = pause
        self.total = 0
        self.shown = 0.0
        self.clock = Clock(0, 0)

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=self.stream, flush=True)

    def start(self, first: int, total: int) -> None:
        """Remember how many steps there are."""
        self.total, self.clock = total, Clock(first, total)

    def step(self, line: dict[str, Any]) -> None:
        """Print it when it is time to."""
        if "eval_loss" in line:
            self.say(f"step {line['step']}: evaluation loss {shown(line['eval_loss'])}")
            return
        remaining = self.clock.remaining(line["step"])
        if time.monotonic() - self.shown >= self.pause or line["step"] == self.total:
            self.shown = time.monotonic()
            self.say(f"step {line['step']}/{self.total}: {describe(line)}, {remaining} left")

    def stop(self) -> None:
        """Nothing to tidy up."""


class Bar:
    """rich's progress bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.console = Console(stderr=True)
        self.bar = RichProgress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(),
            TextColumn("{task.description}"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self.task: Any = None

    def say(self, text: str) -> None:
        """Print it above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def start(self, first: int, total: int) -> None:
        """Show the bar."""
        self.bar.start()
        self.task = self.bar.add_task("", total=total, completed=first - 1)

    def step(self, line: dict[str, Any]) -> None:
        """Move the bar, or print an evaluation."""
        if "eval_loss" in line:
            self.say(f"step {line['step']}: evaluation loss {shown(line['eval_loss'])}")
        elif self.task is not None:
            self.bar.update(self.task, completed=line["step"], description=describe(line))

    def stop(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()


class Clock:
    """How long the rest will take, at the mean speed so far."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total, self.began = first, total, time.monotonic()

    def remaining(self, step: int) -> str:
        """Minutes and seconds."""
        done = max(1, step - self.first + 1)
        seconds = round((time.monotonic() - self.began) / done * (self.total - step))
        return f"{seconds // 60}:{seconds % 60:02d}"


def describe(line: dict[str, Any]) -> str:
    """Loss, speed and memory of one training line."""
    speed = line["tokens_per_second"] or 0.0
    peak = line["peak_memory_bytes"] / 2**30
    return f"loss {shown(line['loss'])}, {speed:,.0f} tokens/s, peak {peak:.2f} GiB"


def shown(loss: float | None) -> str:
    """Four digits; None stands for what is not finite."""
    return "not finite" if loss is None else f"{loss:.4f}"


def default_progress(main: bool = True) -> Progress:
    """A bar in a terminal, lines elsewhere, nothing in processes other than the first."""
    if not main:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()
