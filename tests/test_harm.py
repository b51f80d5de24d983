"""Samples of the exams that kill, cut off, stop and starve runs; all: `python -m exams.soak`."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux" or shutil.which("cc") is None:
    pytest.skip("faults are preloaded: needs Linux and a C compiler", allow_module_level=True)

from exams.soak import crash_points, disks, faults, kills, locks, long_soak, plain, signals
from exams.suite import Case, Cases

WRITES = """
import os, sys
from pathlib import Path
from exams.soak import faults

folder, shadow = Path(sys.argv[1]), Path(sys.argv[2])
import ctypes
calls = ctypes.c_long()
with faults.all_synced(folder, shadow):
    faults.arm(folder, faults.Fault(faults.KILL, int(sys.argv[3]), shadow=shadow),
               ctypes.addressof(calls))
    (folder / "synced").write_text("one")
    with (folder / "synced").open("a") as file:
        os.fsync(file.fileno())
        file.write("two")
    (folder / "not synced").write_text("three")
    os.rename(folder / "old", folder / "new")
    (folder / "the end").write_text("the end")
"""


def killed(tmp_path: Path, call: int) -> tuple[Path, Path]:
    """A folder after a process that wrote there died at its ``call``-th call."""
    folder, shadow = tmp_path / "folder", tmp_path / "shadow"
    folder.mkdir()
    (folder / "old").write_text("old")
    environment = {**os.environ, "LD_PRELOAD": str(faults.library())}
    command = [sys.executable, "-c", WRITES, str(folder), str(shadow), str(call)]
    done = subprocess.run(command, env=environment, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    return folder, shadow


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


LAST_WRITE = 13
"""open, write, close; open, fsync, write, close; open, write, close; rename; open, write."""


def test_a_death_leaves_every_name_and_half_of_the_last_write(tmp_path: Path) -> None:
    folder, _ = killed(tmp_path, LAST_WRITE)
    expected = {"synced": "onetwo", "not synced": "three", "new": "old", "the end": "the"}
    assert contents(folder) == expected


def test_a_power_cut_takes_names_that_were_not_synced(tmp_path: Path) -> None:
    folder, shadow = killed(tmp_path, LAST_WRITE)
    faults.lose_unsynced(folder, shadow)
    assert contents(folder) == {"old": "old"}


def test_a_power_cut_may_keep_the_names_and_take_the_bytes(tmp_path: Path) -> None:
    folder, shadow = killed(tmp_path, LAST_WRITE)
    faults.lose_unsynced_bytes(folder, shadow)
    expected = {"synced": "onet", "not synced": "th", "new": "old", "the end": "t"}
    assert contents(folder) == expected


def failures(cases: Cases, count: int) -> list[str]:
    found: list[Case] = list(itertools.islice(cases(count, 1), count))
    assert len(found) == count
    return [f"{case.name}: {case.detail}" for case in found if not case.passed]


@pytest.mark.slow
def test_a_run_that_dies_at_any_call_ends_as_if_it_had_not() -> None:
    assert failures(crash_points.SUITE.cases, 12) == []


@pytest.mark.slow
def test_a_run_whose_power_is_cut_at_any_call_ends_as_if_it_had_not_been() -> None:
    assert failures(crash_points.POWER_SUITE.cases, 12) == []


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been() -> None:
    assert failures(kills.SUITE.cases, 4) == []


@pytest.mark.slow
def test_a_stopped_run_says_so_and_goes_on_exactly() -> None:
    assert failures(signals.SUITE.cases, 4) == []


@pytest.mark.slow
def test_a_disk_that_fails_is_named_and_costs_nothing_once_repaired() -> None:
    assert failures(disks.SUITE.cases, 4) == []


@pytest.mark.slow
def test_of_several_starts_one_runs_and_the_others_name_it() -> None:
    assert failures(locks.SUITE.cases, 2) == []


@pytest.mark.slow
def test_a_folder_of_another_run_is_not_written_into() -> None:
    assert failures(locks.FOREIGN_SUITE.cases, len(locks.FOREIGN)) == []


@pytest.mark.slow
def test_families_survive_whatever_comes() -> None:
    assert failures(long_soak.SUITE.cases, 3) == []


@pytest.mark.slow
def test_the_exam_of_crash_points_can_fail() -> None:
    """Plain transformers and PEFT: a death in a save leaves what cannot be resumed."""
    assert failures(plain.crash_points, 12) != []
