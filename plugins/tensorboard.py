"""An observer that writes scalars for TensorBoard, when the settings name it among ``trackers``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core import hookimpl

if TYPE_CHECKING:
    from qlora_core import Run

log = logging.getLogger("qlora-core")
MEASURES = {
    "train": ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "peak_memory_bytes"),
    "eval": ("eval_loss",),
}
_writers: dict[Path, Any] = {}
"""The open event files of the runs that asked for one, by run directory."""


@hookimpl
def qlora_run_started(run: Run) -> None:
    """Open ``tensorboard/`` in the folder of a run that asks for it."""
    if "tensorboard" not in (run.record.get("settings", {}).get("trackers") or ()):
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning(
            "trackers names tensorboard, which is not installed: nothing is written for it\n"
            '  -> pip install "qlora-core[tensorboard]"'
        )
        return
    _writers[run.directory] = SummaryWriter(str(run.directory / "tensorboard"))


@hookimpl
def qlora_step_finished(run: Run, step: Mapping[str, Any]) -> None:
    """One scalar for each measure that the line holds."""
    writer = _writers.get(run.directory)
    if writer is None:
        return
    for group, names in MEASURES.items():
        for name in names:
            if step.get(name) is not None:
                label = f"{group}/{name.removeprefix('eval_')}"
                writer.add_scalar(label, step[name], step["step"])


@hookimpl
def qlora_run_finished(run: Run) -> None:
    """Flush and close the event file."""
    writer = _writers.pop(run.directory, None)
    if writer is not None:
        writer.close()
