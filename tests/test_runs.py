"""One run, one folder: records, metrics and the lock."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qlora_core.errors import BadInput, TrainingStopped
from qlora_core.training import files
from qlora_core.training.lock import FolderLock
from qlora_core.training.runs import Run, claimed, find_record, new_record

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, new_record())


def test_a_record_is_read_back_as_it_was(run: Run) -> None:
    run.save()
    assert find_record(run.directory, resume=True) == run.record


def test_resuming_takes_back_what_comes_after_the_checkpoint(run: Run) -> None:
    for step in range(5):
        run.write({"step": step, "loss": step / 10})
    run.note("a", "at three", "x", step=3)
    run.note("b", "at any time", "x")
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a line that a crash cut short
    run.rewind(2)
    assert [line["step"] for line in run.metrics()] == [0, 1, 2]
    assert [note["code"] for note in run.record["notices"]] == ["b"]
    run.write({"step": 3})
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3]


def test_metrics_are_strict_json(run: Run) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.write({"step": 1, "loss": float("nan")})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "run_id": "x"}', "null"]
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=r"run\.json"):
        find_record(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "adapter", "checkpoints"])
def test_results_of_an_unknown_run_are_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for resume in (True, False):
        with pytest.raises(BadInput, match=name):
            find_record(tmp_path, resume=resume)


@pytest.mark.parametrize("part", ["adapter", "checkpoints", "checkpoints/step-000040"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_part_of_a_run_is_no_folder_for_a_run(run: Run, part: str, resume: bool) -> None:
    run.save()
    (run.directory / part).mkdir(parents=True)
    with pytest.raises(BadInput, match="is a part of the run in") as refusal:
        find_record(run.directory / part, resume=resume)
    assert refusal.value.remedy == f"give --output {run.directory}"
    assert find_record(run.directory / "second", resume=False) is None


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", files.MANIFEST])
def test_the_folder_of_a_model_or_an_adapter_is_no_folder_for_a_run(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput, match=f"holds {name}: it is the folder of an adapter or a model"):
        find_record(tmp_path, resume=True)


def test_other_files_may_lie_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "nohup.out").write_text("log")
    with claimed(tmp_path, resume=False) as found:
        assert found is None


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "a" / "run"
    with pytest.raises(RuntimeError), claimed(output, resume=False):
        raise RuntimeError
    assert not output.exists()


def test_what_an_interrupted_save_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".staging-1").mkdir(parents=True)
    (tmp_path / ".staging-2-run.json").write_text("")
    (tmp_path / "checkpoints" / ".trash-3").mkdir()
    run = Run(tmp_path, new_record())
    run.save()
    with claimed(tmp_path, resume=True) as found:
        assert found == run.record
        assert not list((tmp_path / "checkpoints").iterdir())
        assert not list(tmp_path.glob(".staging*"))


def test_a_second_run_in_the_folder_is_refused_and_names_the_first(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "abc")
    with pytest.raises(BadInput, match=rf"process {os.getpid()} .*run abc"):
        FolderLock(tmp_path, "def")
    lock.release()
    FolderLock(tmp_path, "def").release()
    assert not list(tmp_path.iterdir())


def test_the_lock_names_the_run_that_is_found_or_made(tmp_path: Path) -> None:
    with claimed(tmp_path, resume=False, run_id="new"):
        with pytest.raises(BadInput, match=rf"process {os.getpid()} .*run new"):
            FolderLock(tmp_path, "other")
        run = Run(tmp_path, new_record())
        run.save()
    found = pytest.raises(BadInput, match=f"run {run.run_id}")
    with claimed(tmp_path, resume=True, run_id="new"), found:
        FolderLock(tmp_path, "other")


@pytest.mark.parametrize("where", ["adapter", "checkpoints/step-000003"])
def test_results_of_another_run_beside_a_record_are_refused(run: Run, where: str) -> None:
    run.save()
    result = run.directory / where
    for run_id in ("other", run.run_id):
        write = lambda folder: (folder / "weights").write_text("x")  # noqa: E731
        files.publish(result, write, size=1, facts={"run_id": run_id})
        if run_id == "other":
            with pytest.raises(BadInput, match=r"belongs to another run \(other\)"):
                find_record(run.directory, resume=True)
    assert find_record(run.directory, resume=True) == run.record


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_metrics_that_the_disk_refuses_stop_the_run_with_a_message(run: Run) -> None:
    (run.directory / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(TrainingStopped, match=r"(?s)metrics\.jsonl: .*No space left.*--resume"):
        run.write({"step": 1})


@posix
def test_of_many_starts_at_once_exactly_one_runs(tmp_path: Path) -> None:
    begin, done = os.pipe(), os.pipe()
    children = set()
    for number in range(20):
        child = os.fork()
        if child == 0:
            os.close(begin[1])
            os.close(done[1])
            os.read(begin[0], 1)  # all begin when the parent closes its end
            try:
                with claimed(tmp_path / "run", resume=False):
                    (tmp_path / f"ran-{number}").touch()
                    os.read(done[0], 1)  # until all others have ended
            except BadInput:
                os._exit(2)
            os._exit(0)
        children.add(child)
    os.close(begin[1])
    codes = []
    while len(codes) < 20:
        child, status = os.waitpid(-1, 0)
        if child in children:
            codes.append(os.waitstatus_to_exitcode(status))
        if len(codes) == 19:
            os.close(done[1])
    os.close(begin[0])
    os.close(done[0])
    assert codes == [2] * 19 + [0]
    assert len(list(tmp_path.glob("ran-*"))) == 1


@posix
def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        FolderLock(tmp_path, "killed")
        os._exit(9)
    os.waitpid(child, 0)
    FolderLock(tmp_path, "next").release()


def test_a_folder_in_which_no_lock_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BadInput, match=f"cannot write to the output folder {tmp_path}"):
        FolderLock(tmp_path, "a")


def test_what_the_disk_does_not_remove_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "step-1"
    old.mkdir()

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    files.discard(old)
    assert not old.exists()
    assert "could not be removed (Input/output error)" in caplog.text
    monkeypatch.undo()
    files.clean(tmp_path)
    assert not any(tmp_path.iterdir())
