"""Saves: whole or not at all, whatever happens in the middle of them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_core.errors import CheckFailed, TrainingStopped
from qlora_core.training import checkpoints, files
from qlora_core.training.optimizers import runs_8bit

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and POSIX file modes")


def tiny(rank: int = 2) -> peft.PeftModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    return peft.get_peft_model(
        LlamaForCausalLM(config), peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])
    )


class Trained:
    """A model with an optimizer that has made some steps."""

    def __init__(self, kind: Callable = torch.optim.AdamW) -> None:
        self.model = tiny()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = kind(self.parameters, lr=0.1)

    def step(self) -> None:
        for number, parameter in enumerate(self.parameters):
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
        self.optimizer.step()

    def save(self, folder: Path, step: int, run_id: str = "run") -> Path:
        state = {"step": step}
        return checkpoints.save_checkpoint(folder, self.model, self.optimizer, state, run_id=run_id)

    def values(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.parameters]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def optimizers() -> list:
    import bitsandbytes

    eight_bit = partial(bitsandbytes.optim.AdamW8bit, min_8bit_size=16)
    return [torch.optim.AdamW, eight_bit]


@pytest.mark.parametrize("kind", optimizers(), ids=["AdamW", "AdamW8bit"])
def test_an_optimizer_goes_on_exactly_as_it_was(folder: Path, kind: Callable) -> None:
    if kind is not torch.optim.AdamW and not runs_8bit(torch.device("cpu")):
        pytest.skip("this bitsandbytes has no 8-bit optimizer for CPUs")
    straight = Trained(kind)
    straight.step()
    path = straight.save(folder, 1)
    if kind is not torch.optim.AdamW:
        states = straight.optimizer.state.values()
        assert all(state["state1"].dtype == torch.uint8 for state in states)
    resumed = Trained(kind)
    assert checkpoints.load_checkpoint(path, resumed.model, resumed.optimizer) == {"step": 1}
    for trained in (straight, resumed):
        trained.step()
    assert equal(straight.values(), resumed.values())


def test_a_checkpoint_holds_no_pickle(folder: Path) -> None:
    trained = Trained()
    trained.step()
    path = trained.save(folder, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_weights_that_are_not_finite_are_never_saved(folder: Path) -> None:
    trained = Trained()
    trained.step()
    trained.parameters[0].data[0, 0] = torch.nan
    with pytest.raises(TrainingStopped, match="1 of 4 adapter tensors are not finite"):
        trained.save(folder, 1)
    assert not folder.exists()


def test_an_adapter_of_another_shape_is_refused(folder: Path) -> None:
    trained = Trained()
    trained.step()
    path = trained.save(folder, 1)
    other = peft.get_peft_model(
        tiny().unload(), peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"])
    )
    with pytest.raises(CheckFailed, match="another adapter"):
        checkpoints.load_adapter(path, other)


def damages(path: Path) -> list[tuple[str, Callable[[], object]]]:
    """Every way to harm one file."""
    content = path.read_bytes()

    def flip(place: int) -> Callable[[], object]:
        changed = bytearray(content)
        changed[place] ^= 1
        return lambda: path.write_bytes(bytes(changed))

    places = sorted({0, len(content) // 3, len(content) // 2, len(content) - 1})
    return [
        ("removed", path.unlink),
        ("empty", lambda: path.write_bytes(b"")),
        ("cut", lambda: path.write_bytes(content[: len(content) // 2])),
        ("longer", lambda: path.write_bytes(content + b" ")),
        *((f"bit {place}", flip(place)) for place in places),
    ]


def test_every_damage_is_detected_and_the_older_one_used(folder: Path) -> None:
    trained = Trained()
    trained.step()
    older = trained.save(folder, 1)
    newer = trained.save(folder, 2)
    tried = 0
    for file in sorted(newer.iterdir()):
        content = file.read_bytes()
        for what, harm in damages(file):
            harm()
            found, refused = checkpoints.newest_valid(folder, "run")
            assert found == older, f"{file.name} {what}"
            assert [r.path for r in refused] == [newer]
            file.write_bytes(content)
            tried += 1
    assert tried >= 40
    assert checkpoints.newest_valid(folder, "run") == (newer, [])


def test_a_checkpoint_of_another_run_is_never_used(folder: Path) -> None:
    trained = Trained()
    trained.step()
    trained.save(folder, 1)
    trained.save(folder, 2, run_id="other")
    found, refused = checkpoints.newest_valid(folder, "run")
    assert found is not None
    assert checkpoints.step_of(found) == 1
    assert "another run" in refused[0].reason


def test_retention_never_removes_the_last_valid_one(folder: Path) -> None:
    trained = Trained()
    trained.step()
    for step in (1, 2, 3, 4):
        path = trained.save(folder, step)
        if step >= 3:
            (path / checkpoints.ADAPTER).write_bytes(b"")
    checkpoints.retain(folder, 1, "run", protected=[1])
    found, _ = checkpoints.newest_valid(folder, "run")
    assert found is not None
    assert checkpoints.step_of(found) == 2
    assert sorted(p.name for p in folder.iterdir()) == ["step-000001", "step-000002"]


def test_retention_counts_and_removes_only_the_runs_own(folder: Path) -> None:
    trained = Trained()
    trained.step()
    for step, run_id in ((1, "run"), (2, "run"), (3, "other"), (4, "other")):
        trained.save(folder, step, run_id=run_id)
    checkpoints.retain(folder, 1, "run")
    assert sorted(map(checkpoints.step_of, folder.iterdir())) == [2, 3, 4]


def test_what_a_save_needs_is_known_to_the_header_of_its_files(folder: Path) -> None:
    trained = Trained()
    trained.step()
    path = trained.save(folder, 1)
    for name in (checkpoints.ADAPTER, checkpoints.OPTIMIZER):
        tensors = load_file(path / name)
        known, real = checkpoints.saved_bytes(tensors), (path / name).stat().st_size
        assert real <= known <= real + checkpoints.HEADER_ENTRY * len(tensors)


def test_a_full_disk_is_known_before_a_byte_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained()
    trained.step()
    trained.save(folder, 1)
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingStopped, match=r"needs [\d,]+ bytes and 1,000 are free"):
        trained.save(folder, 2)
    assert [p.name for p in folder.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("call", range(6))
def test_a_disk_that_fails_in_a_save_leaves_the_older_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    trained = Trained()
    trained.step()
    trained.save(folder, 1)
    count, real = 0, os.fsync

    def failing(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", failing)
        with pytest.raises(TrainingStopped, match="No space left"):
            trained.save(folder, 2)
    assert [p.name for p in folder.iterdir()] == ["step-000001"]
    assert trained.save(folder, 2) == checkpoints.newest_valid(folder, "run")[0]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_modes_follow_the_umask(folder: Path, umask: int) -> None:
    trained = Trained()
    trained.step()
    before = os.umask(umask)
    try:
        path = trained.save(folder, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o666 & ~umask}


def test_folders_within_a_result_are_sealed_too(tmp_path: Path) -> None:
    """A tokenizer with several chat templates keeps them in a folder of their own."""

    def write(staging: Path) -> None:
        (staging / "templates").mkdir()
        (staging / "templates" / "tools.jinja").write_text("{{ messages }}")

    result = tmp_path / "adapter"
    files.publish(result, write, size=1, facts={})
    assert files.damage(result) is None
    (result / "templates" / "tools.jinja").write_text("{{ damaged! }}")
    assert files.damage(result) == "templates/tools.jinja is damaged"
    (result / "templates" / "tools.jinja").unlink()
    assert files.damage(result) == "templates/tools.jinja is missing"


@pytest.mark.parametrize("when", ["the second rename fails", "it is killed before it"])
def test_what_is_replaced_is_there_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    result = tmp_path / "adapter"
    files.publish(result, lambda f: (f / "a").write_text("old"), size=1, facts={})  # type: ignore[arg-type, return-value]
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.startswith(files.STAGING):
            raise OSError(5, "Input/output error") if "fails" in when else SystemExit(9)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((TrainingStopped, SystemExit)):
        files.publish(result, lambda f: (f / "a").write_text("new"), size=1, facts={})  # type: ignore[arg-type, return-value]
    monkeypatch.undo()
    assert result.exists() == ("fails" in when)
    files.clean(tmp_path)
    assert files.damage(result) is None
    assert (result / "a").read_text() == "old"
    files.publish(result, lambda f: (f / "a").write_text("new"), size=1, facts={})  # type: ignore[arg-type, return-value]
    assert (result / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def crashes_at(point: int, folder: Path, save: Callable[[], object]) -> bool:
    """Run ``save`` in a child that dies, unwarned, before its ``point``-th change to ``folder``."""
    child = os.fork()
    if child == 0:
        count = 0

        def die(event: str, arguments: tuple) -> None:
            nonlocal count
            if event in CHANGES and str(folder) in str(arguments[0]):
                count += 1
                if count == point:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            save()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@posix
@pytest.mark.parametrize("where", ["fresh", "same step again", "with rotation"])
def test_a_crash_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, where: str
) -> None:
    trained = Trained()
    trained.step()
    first = trained.values()
    master = tmp_path / "master"
    trained.save(master, 1)
    if where == "same step again":
        trained.save(master, 2)
    trained.step()
    second = trained.values()
    folder = tmp_path / "checkpoints"

    def save() -> None:
        trained.save(folder, 2)
        if where == "with rotation":
            checkpoints.retain(folder, 1, "run")

    point, died = 0, True
    while died:
        point += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(master, folder)
        died = crashes_at(point, folder, save)
        files.clean(folder)
        found, refused = checkpoints.newest_valid(folder, "run")
        assert found is not None, f"nothing to resume from after a crash at point {point}"
        assert not refused
        fresh = Trained()
        checkpoints.load_checkpoint(found, fresh.model, fresh.optimizer)
        assert equal(fresh.values(), first) or equal(fresh.values(), second)
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    assert point > 20
    assert equal(fresh.values(), second)
