"""An observer that writes ``report.html`` beside a run: one page, readable offline and printed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core import hookimpl

if TYPE_CHECKING:
    from qlora_core import Run


@hookimpl
def qlora_run_started(run: Run) -> None:
    """A first page: what is going to be trained, on what, in how much memory."""
    write(run.directory, run.record)


@hookimpl
def qlora_step_finished(run: Run, step: Mapping[str, Any]) -> None:
    """A new page at every evaluation, so that a long run can be watched."""
    if "eval_loss" in step:
        write(run.directory, run.record)


@hookimpl
def qlora_run_finished(run: Run) -> None:
    """The final page, however the run ended."""
    write(run.directory, run.record)


def write(directory: Path, record: Mapping[str, Any]) -> Path:
    """Write ``directory/report.html`` whole or not at all, and return its path."""
    from .page import page  # not for every command that looks for plugins
    from .reading import Metrics

    path = Path(directory) / "report.html"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(page(record, Metrics.read(path.with_name("metrics.jsonl"))), encoding="utf-8")
    os.replace(aside, path)
    return path
