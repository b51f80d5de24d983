"""One run, one folder: its record, its metrics, and who may write there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from qlora_core.errors import BadInput
from qlora_core.training import files
from qlora_core.training.lock import FolderLock

log = logging.getLogger("qlora-core")
RECORD, METRICS, ADAPTER, CHECKPOINTS = "run.json", "metrics.jsonl", "adapter", "checkpoints"


class Run:
    """A run's folder and record. Observers read ``directory``, ``record`` and ``metrics``.

    ``record`` is what ``run.json`` holds; ``save`` writes it. ``writes`` is False in all
    processes but the first, which then only keep the record in memory.
    """

    def __init__(self, directory: Path, record: dict[str, Any], *, writes: bool = True) -> None:
        self.directory = directory
        self.record = record
        self.writes = writes

    @property
    def run_id(self) -> str:
        """Made once, when the run was first started; every checkpoint carries it."""
        return str(self.record["run_id"])

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``stopped``, ``interrupted`` or ``failed``."""
        return str(self.record["status"])

    @property
    def adapter(self) -> Path:
        """Where the result of a finished run lies, in PEFT's format."""
        return self.directory / ADAPTER

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.directory / CHECKPOINTS

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` so far."""
        return [value for _, value in _lines(self.directory / METRICS)]

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``. Raises TrainingStopped where the disk refuses."""
        path = self.directory / METRICS
        if self.writes:
            with files.writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Take back what was recorded after ``step``: it will be computed again."""
        path = self.directory / METRICS
        if not self.writes or not path.exists():
            return
        kept = [text for text, line in _lines(path) if line.get("step", 0) <= step]
        aside = path.with_name(f"{files.STAGING}{METRICS}")
        with files.writing(path):
            aside.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8", newline="\n")
            files.sync(aside)
            aside.replace(path)
        self.record["notices"] = [
            n for n in self.record["notices"] if n.get("step") is None or n["step"] <= step
        ]

    def note(self, code: str, message: str, remedy: str, *, step: int | None = None) -> None:
        """Record and log something that does not stop the run but that the user should know."""
        self.record["notices"].append(
            {"code": code, "message": message, "remedy": remedy, "step": step}
        )
        if self.writes:
            log.warning("%s\n  -> %s", message, remedy)

    def save(self) -> None:
        """Write ``run.json`` in one rename, after the metrics it counts are on the disk.

        Raises TrainingStopped where the disk refuses.
        """
        if not self.writes:
            return
        metrics = self.directory / METRICS
        with files.writing(self.directory / RECORD):
            if metrics.exists():
                files.sync(metrics)
            files.write_json(self.directory / RECORD, self.record)

    def finish(self, status: str) -> None:
        """Record how and when the run ended."""
        self.record["status"] = status
        self.record["finished"] = now()
        self.save()


def new_record() -> dict[str, Any]:
    """The record of a run that starts now."""
    return {
        "schema": 1, "run_id": uuid4().hex[:12], "status": "running", "started": now(),
        "finished": None, "seconds": 0.0, "steps": 0, "tokens": 0, "learned_tokens": 0,
        "loss": {"first": None, "last": None},
        "evaluation": {"before": None, "after": None, "best": None, "best_step": None},
        "samples": [], "notices": [],
    }  # fmt: skip


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_record(directory: Path, *, resume: bool) -> dict[str, Any] | None:
    """The record of the run in ``directory`` to go on with, None for a new run.

    Raises BadInput for a folder that holds a run while ``resume`` is not asked for, for results
    of a run whose record is missing or damaged, for those of another run beside a record, for a
    part of a run and for the folder of an adapter or a model.
    """
    names = (RECORD, METRICS, ADAPTER, CHECKPOINTS)
    present = [name for name in names if os.path.lexists(directory / name)]
    if not present:
        _require_no_part(directory)
        return None
    if RECORD not in present:
        raise BadInput(
            f"{directory} holds {', '.join(present)} and no {RECORD}: it is not known of which run",
            "give another --output, or remove them",
        )
    record = _read_record(directory / RECORD)
    if not resume:
        raise BadInput(
            f"{directory} holds run {record['run_id']} ({record['status']}, "
            f"step {record['steps']}, started {record['started']})",
            "go on with it by --resume, or give another --output",
        )
    for folder in (directory / ADAPTER, *(directory / CHECKPOINTS).glob("*")):
        if reason := files.stranger(folder, record["run_id"]):
            raise BadInput(
                f"{folder}: {reason}, and {directory} holds run {record['run_id']}",
                "move it elsewhere: one folder holds one run",
            )
    return record


def _require_no_part(directory: Path) -> None:
    """Raise BadInput for a part of a run, and for the folder of an adapter or a model."""
    run = next((p for p in directory.absolute().parents if os.path.lexists(p / RECORD)), None)
    inside = run and directory.absolute().relative_to(run).parts[0] in (ADAPTER, CHECKPOINTS)
    if run and inside:
        raise BadInput(f"{directory} is a part of the run in {run}", f"give --output {run}")
    held = [name for name in (files.MANIFEST, "adapter_config.json", "config.json")
            if os.path.lexists(directory / name)]  # fmt: skip
    if held:
        raise BadInput(
            f"{directory} holds {held[0]}: it is the folder of an adapter or a model",
            "give another --output",
        )


@contextmanager
def claimed(
    directory: Path, *, resume: bool, run_id: str = "starting", main: bool = True
) -> Iterator[dict[str, Any] | None]:
    """Hold ``directory`` alone; yields the record of the run to go on with, or None.

    The lock names the run found there, or ``run_id``: that of the run that would be new. Raises
    BadInput where the folder cannot be written, belongs to another run, or another process is at
    work there. A folder made here that stays empty is removed. Only ``main`` takes the lock.
    """
    if not main:
        yield find_record(directory, resume=resume) if resume else None
        return
    if directory.exists() and not directory.is_dir():
        raise BadInput(f"the output {directory} is a file", "give a folder")
    made = not directory.exists()
    try:
        files.probe(directory)
        lock = FolderLock(directory, run_id)
        try:
            files.clean(directory)
            files.clean(directory / CHECKPOINTS)
            found = find_record(directory, resume=resume)
            if found is not None:
                lock.sign(found["run_id"])
            yield found
        finally:
            lock.release()
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty: the run has begun
                directory.rmdir()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != 1:
            raise BadInput(
                f"{path} has schema {record['schema']}; this release knows schema 1",
                "go on with the release that wrote it, or give another --output",
            )
        needed = new_record().keys() - record.keys()
        if needed:
            raise KeyError(*needed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is damaged ({type(error).__name__}: {error})", "give another --output"
        ) from None
    return dict(record)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Text and value of every whole line; a line cut short by a crash is none."""
    found = []
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for text in texts:
        try:
            found.append((text, json.loads(text)))
        except ValueError:
            continue
    return found
