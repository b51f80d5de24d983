"""Disks that are full, read-only or broken: the message says so; after repair nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exams.soak import small
from exams.soak.faults import FAIL, FOR_GOOD, Fault
from exams.soak.rehearsal import Rehearsal
from exams.soak.stage import Ended, preloaded
from exams.soak.warm import share
from exams.suite import Case, Suite, defined_in
from qlora_core.training.runs import CHECKPOINTS

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
SIZE, PAGE = 2**24, 4096
OTHER = 2 * PAGE
"""What a resumed run writes before a save: metrics."""
NEEDS = re.compile(r"needs ([\d,]+) bytes and ([\d,]+) are free")


class Disk:
    """A file system in memory at the run's folder, to be filled and made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ballast = folder / "ballast"

    def option(self, text: str) -> None:
        """Mount it again with this option: ``ro``, ``rw``, ``nr_inodes=...``."""
        command = ["mount", "-o", f"remount,{text}", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def make_read_only(self) -> None:
        """As soon as no file is open for writing."""
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                return self.option("ro")

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.folder).free

    def leave(self, size: int) -> None:
        """Fill it up to ``size`` free bytes."""
        self.ballast.unlink(missing_ok=True)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(PAGE, self.free - size))

    def leave_inodes(self, number: int) -> None:
        """Limit the inodes so that ``number`` are free."""
        system = os.statvfs(self.folder)
        self.option(f"nr_inodes={system.f_files - system.f_ffree + number}")

    def repair(self) -> None:
        """All space, all inodes, writable."""
        self.option(f"rw,nr_inodes={2**16}")
        self.ballast.unlink(missing_ok=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk | None]:
    """A disk of 16 MiB at ``folder``; None where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    options = f"size={SIZE},nr_inodes={2**16}"
    command = ["mount", "-t", "tmpfs", "-o", options, "exam", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        print("no disk can be mounted here: all faults are injected", flush=True)
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _full_at_start(run: Rehearsal, disk: Disk, _: random.Random) -> str:
    disk.leave(0)
    return _refused(run.finish(), "No space left")


def _short_of_a_page(run: Rehearsal, disk: Disk, _: random.Random) -> str:
    """What a save is said to need is known before it: a page less is refused, so much is enough."""
    need = 2**17
    for _round in range(3):  # what the first save needs is asked for at the start, then exactly
        disk.leave(need - PAGE)
        need, wrong = _asked_for(run, run.finish())
        if wrong:
            return wrong
        disk.leave(need + OTHER)
        ended = run.finish()
        if ended.saved:
            return ""
        need, wrong = _asked_for(run, ended)
        if wrong:
            return wrong
    return f"so much was free, and nothing was saved: {ended.said[-500:]}"


def _asked_for(run: Rehearsal, ended: Ended) -> tuple[int, str]:
    """The bytes that a refused save asked for, and what is wrong with how it was refused."""
    figures = NEEDS.search(ended.said)
    need = int(figures[1].replace(",", "")) if figures else 0
    saves = run.output / CHECKPOINTS
    if saves.exists() and any(saves.iterdir()):
        return need, "a save had begun"
    return need, _refused(ended, "needs")


def _filled_meanwhile(run: Rehearsal, disk: Disk, dice: random.Random) -> str:
    running = run.start()
    time.sleep(dice.random() * run.seconds / 2)
    disk.leave(dice.randrange(2**20))
    return _refused_or_whole(run, running.wait(), "")


def _no_inodes(run: Rehearsal, disk: Disk, _: random.Random) -> str:
    disk.leave_inodes(0)
    return _refused(run.finish(), "0 inodes")


def _few_inodes(run: Rehearsal, disk: Disk, _: random.Random) -> str:
    disk.leave_inodes(12)
    return _refused(run.finish(), "inodes")


def _read_only(run: Rehearsal, disk: Disk, _: random.Random) -> str:
    disk.option("ro")
    began = time.monotonic()
    wrong = _refused(run.finish(), "Read-only")
    seconds = time.monotonic() - began
    return wrong or (f"told only after {seconds:.1f} s" if seconds > run.seconds else "")


def _read_only_meanwhile(run: Rehearsal, disk: Disk, dice: random.Random) -> str:
    running = run.start()
    time.sleep(dice.random() * run.seconds / 2)
    disk.make_read_only()
    return _refused_or_whole(run, running.wait(), "Read-only")


def _injected(run: Rehearsal, number: int, *, for_good: bool) -> str:
    """A call fails, and all after it or none: found by its error number."""
    dice = random.Random(number)
    error = ERRORS[number % len(ERRORS)]
    fault = Fault(FAIL, dice.randint(1, len(run.calls)), error, FOR_GOOD if for_good else 0)
    ended = run.start(fault).wait()
    return _refused_or_whole(run, ended, os.strerror(error).partition(" ")[0])


REAL: dict[str, Callable[[Rehearsal, Disk, random.Random], str]] = {
    "full at the start": _full_at_start,
    "a page less than a save needs": _short_of_a_page,
    "full in the middle": _filled_meanwhile,
    "no inodes": _no_inodes,
    "few inodes": _few_inodes,
    "read-only": _read_only,
    "read-only in the middle": _read_only_meanwhile,
}


def _refused(ended: Ended, reason: str) -> str:
    """Empty if the run ended by a message with that reason and with what to do."""
    told = "error:" in ended.said and "  -> " in ended.said and reason in ended.said
    if ended.code in (1, 2) and told and "Traceback" not in ended.said:
        return ""
    return f"exit code {ended.code}: {ended.said[-900:]}"


def _refused_or_whole(run: Rehearsal, ended: Ended, reason: str) -> str:
    """A fault may come too late, or hit what the run does not need: then the run is whole."""
    return run.wrong(ended) if ended.code == 0 else _refused(ended, reason)


@preloaded
def cases(count: int, seed: int) -> Iterator[Case]:
    """Every second case on a real disk where one can be mounted; else the errors are injected."""
    with small.bench() as bench, mounted(bench.folder / "case") as disk:
        changes: dict[str, Any] = {"max_steps": 6, "save_every": 2}
        share(bench.settings("any", **changes))
        run = Rehearsal(bench, **changes)
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            run.reset()
            if disk is not None and number % 2 == 0:
                name, harm = [*REAL.items()][number // 2 % len(REAL)]
                wrong = harm(run, disk, dice)
                disk.repair()
            else:
                for_good = number % 4 == 1
                chosen = dice.randrange(2**20)
                name = f"{errno.errorcode[ERRORS[chosen % len(ERRORS)]]} {chosen}"
                name += " for good" if for_good else " once"
                wrong = _injected(run, chosen, for_good=for_good)
            wrong = wrong or run.wrong(run.finish())
            yield Case(f"{number}: {name}", not wrong, wrong)


SUITE = Suite(
    name="disks",
    promise="a full, read-only or broken disk is named with what to do; after repair: identical",
    cases=cases,
    full=28,
    quick=14,
    baseline=defined_in("exams.soak.plain_runs", "disks"),
)
