"""Whole runs on a tiny model: what they leave, and that stopping and resuming changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load as load_bytes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_core import load
from qlora_core.errors import BadInput, CheckFailed, TrainingStopped
from qlora_core.registry.hooks import hookimpl
from qlora_core.registry.manager import PluginRecord, Registry
from qlora_core.training import loop as loop_module
from qlora_core.training import setup
from qlora_core.training.optimizers import runs_8bit
from qlora_core.training.progress import Silent
from qlora_core.training.runs import Run
from qlora_core.training.settings import TrainSettings, settings_from
from qlora_core.training.train import dry_run, train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=320, max_position_embeddings=256, bos_token_id=256,
        eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<pad>"])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"question": f"{'what ' * (i % 5)}is {i}?", "answer": f"it is {i * i}"} for i in range(22)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def four_steps(model: Path, data: Path, output: Path) -> TrainSettings:
    return TrainSettings(
        model=str(model), data=str(data), output=str(output), max_steps=4, rank=4,
        batch_size=2, gradient_accumulation=2, dropout=0.1, learning_rate=1e-2, save_every=2,
        sample_prompts=1, device="cpu", block=("report", "tensorboard"), compute_dtype="float32",
    )  # fmt: skip


@pytest.fixture
def settings(model: Path, data: Path, tmp_path: Path) -> TrainSettings:
    return four_steps(model, data, tmp_path / "run")


def trained(settings: TrainSettings, registry: Registry | None = None, **changes: Any) -> Run:
    return train(dataclasses.replace(settings, **changes), registry=registry, progress=Silent())


def adapter(run: Run | Path) -> dict[str, torch.Tensor]:
    folder = run.adapter if isinstance(run, Run) else run / "adapter"
    return load_bytes((folder / "adapter_model.safetensors").read_bytes())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@pytest.mark.parametrize(("before", "after"), [(2, 0), (1, 3), (0, 2)])
def test_a_resumed_run_asks_the_prompts_that_were_asked_before_it(
    settings: TrainSettings, before: int, after: int
) -> None:
    """Whatever number is asked for now: what had no answer before has none to compare with."""
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(2)), sample_prompts=before)
    record = json.loads((Path(settings.output) / "run.json").read_text())
    run = trained(settings, resume=True, sample_prompts=after)
    assert run.status == "finished"
    assert len(run.record["samples"]) == before
    assert [s["before"] for s in run.record["samples"]] == [s["before"] for s in record["samples"]]
    assert all(isinstance(s["after"], str) for s in run.record["samples"])


def test_prompts_of_other_rows_are_not_taken_for_those_of_before(
    settings: TrainSettings, data: Path
) -> None:
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(2)), sample_prompts=2)
    data.write_text(data.read_text().replace("is 0?", "was 0?"))
    run = trained(settings, resume=True, sample_prompts=2, allow_change=("data_hash",))
    answered = [s["after"] is not None for s in run.record["samples"]]
    assert run.status == "finished"
    assert answered == [False, True]
    assert "other-prompts" in {n["code"] for n in run.record["notices"]}


class Stopper:
    """An observer that sends this process a signal when a step is done."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    @hookimpl
    def qlora_step_finished(self, run: Run, step: dict[str, Any]) -> None:
        if step["step"] == self.step and "loss" in step:
            os.kill(os.getpid(), self.signum)


def watched_by(observer: object) -> Registry:
    registry = Registry.from_environment(block=["report", "tensorboard"])
    registry.add(observer, PluginRecord("observer", "test", "1"))
    return registry


def test_a_run_leaves_what_is_promised(settings: TrainSettings) -> None:
    run = trained(settings, eval_split=0.2, eval_every=2)
    left = {p.relative_to(run.directory).as_posix() for p in run.directory.rglob("*")}
    assert {
        "run.json", "metrics.jsonl", "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json", "adapter/tokenizer.json", "adapter/chat_template.jinja",
        "adapter/generation_config.json", "checkpoints/step-000004/MANIFEST.json",
    } <= left  # fmt: skip
    assert not [name for name in left if ".staging" in name or ".lock" in name]
    record = json.loads((run.directory / "run.json").read_text())
    assert record == run.record
    assert record["status"] == "finished"
    assert record["steps"] == 4
    assert record["adapters"]["modules"] == 14
    assert record["data"]["rows"] == 22
    assert record["memory"]["measured_peak_bytes"] > 0
    assert record["evaluation"]["after"] < record["evaluation"]["before"]
    assert {"prompt", "expected", "before", "after"} <= record["samples"][0].keys()
    lines = run.metrics()
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    assert record["tokens"] == sum(line.get("tokens", 0) for line in lines)


def test_the_adapter_gives_plain_peft_the_same_logits(settings: TrainSettings, model: Path) -> None:
    run = trained(settings)
    base, _ = load(model, compute_dtype=torch.float32, device="cpu")
    plain = peft.PeftModel.from_pretrained(base, run.adapter).eval()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        changed = plain(input_ids=ids).logits
        with plain.disable_adapter():
            unchanged = plain(input_ids=ids).logits
    assert (changed - unchanged).abs().max() > 1e-3
    assert same(adapter(run), peft.get_peft_model_state_dict(plain))


def test_the_first_loss_equals_that_of_plain_transformers(
    settings: TrainSettings, model: Path
) -> None:
    run = trained(settings, max_steps=1, compute_dtype="bfloat16", dropout=0.0)
    base, _ = load(model, compute_dtype=torch.bfloat16, device="cpu")
    found = dry_run(dataclasses.replace(settings, max_steps=1)).inputs
    from qlora_core.training.processes import Processes

    group = next(found.batches(Processes(cpu=True)).groups(1, 1))
    total = count = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in group.batches:
            learned = int((batch["labels"][:, 1:] != -100).sum())
            total += float(base(**batch).loss) * learned
            count += learned
    assert run.metrics()[0]["loss"] == pytest.approx(total / count, rel=2**-8)


def test_interrupting_and_resuming_trains_the_same_adapters(settings: TrainSettings) -> None:
    straight = trained(settings, output=settings.output + "-straight")
    with pytest.raises(TrainingStopped, match="after step 3 of 4") as caught:
        trained(settings, watched_by(Stopper(3)))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    record = json.loads((Path(settings.output) / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert not (Path(settings.output) / "adapter").exists()
    resumed = trained(settings, resume=True)
    assert same(adapter(straight), adapter(resumed))
    assert resumed.run_id == record["run_id"]
    one, other = ([line["loss"] for line in run.metrics()] for run in (straight, resumed))
    assert one == other


def test_a_second_signal_stops_at_once_and_leaves_a_whole_folder(settings: TrainSettings) -> None:
    straight = trained(settings, output=settings.output + "-straight")

    class Impatient:
        @hookimpl
        def qlora_step_finished(self, run: Run, step: dict[str, Any]) -> None:
            if step["step"] == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(settings, watched_by(Impatient()))
    assert signal.getsignal(signal.SIGINT) is before
    assert same(adapter(straight), adapter(trained(settings, resume=True)))


def test_a_killed_run_goes_on_from_its_last_checkpoint(settings: TrainSettings) -> None:
    straight = trained(settings, output=settings.output + "-straight")
    code = (
        "import os\n"
        "from qlora_core.training import session\n"
        "from qlora_core.training.settings import settings_from\n"
        "from qlora_core.training.train import train\n"
        "record = session.Session._record\n"
        "def dying(self, step):\n"
        "    record(self, step)\n"
        "    if step.step == 3: os._exit(9)\n"
        "session.Session._record = dying\n"
        f"train(settings_from(None, {dataclasses.asdict(settings)!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert len(Run(Path(settings.output), {}).metrics()) == 3
    resumed = trained(settings, resume=True)
    assert same(adapter(straight), adapter(resumed))
    assert [line["step"] for line in resumed.metrics()] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_passed_over_and_named(settings: TrainSettings) -> None:
    straight = trained(settings)
    expected = adapter(straight)
    (straight.adapter / "adapter_model.safetensors").write_bytes(b"")
    newest = straight.checkpoints / "step-000004" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = trained(settings, resume=True)
    assert same(expected, adapter(resumed))
    notices = [n["message"] for n in resumed.record["notices"] if n["code"] == "checkpoint-refused"]
    assert len(notices) == 1
    assert "step-000004" in notices[0]
    assert "optimizer.safetensors" in notices[0]


def test_resuming_a_finished_run_does_nothing(settings: TrainSettings) -> None:
    first = trained(settings, max_steps=2)
    before = {p: p.stat().st_mtime_ns for p in first.directory.rglob("*")}
    assert trained(settings, max_steps=2, resume=True).status == "finished"
    assert {p: p.stat().st_mtime_ns for p in first.directory.rglob("*")} == before


def test_resume_without_a_run_starts_one_and_says_so(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(dataclasses.replace(settings, max_steps=1, resume=True))
    assert run.status == "finished"
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"learning_rate": 2e-2}, "learning_rate"), ({"seed": 1}, "seed"),
        ({"dropout": 0.2}, "dropout"), ({"rank": 8}, "rank"), ({"alpha": 3.0}, "alpha"),
        ({"gradient_accumulation": 1}, "gradient_accumulation"),
        ({"schedule": "linear"}, "schedule"),
        ({"max_gradient_norm": 0.1}, "max_gradient_norm"), ({"max_steps": 6}, "max_steps"),
        ({"quantize": "fp4"}, "quantize"), ({"targets": "attention"}, "targets"),
        ({"weight_decay": 0.1}, "weight_decay"), ({"compute_dtype": "bfloat16"}, "hardware"),
    ],
)  # fmt: skip
def test_a_changed_setting_is_refused_with_both_values(
    settings: TrainSettings, changes: dict[str, Any], key: str, interrupted: Path
) -> None:
    with pytest.raises(BadInput, match=rf"{key}: was .*, is .*") as caught:
        trained(settings, output=str(interrupted), resume=True, **changes)
    assert f"--allow-change {key}" in caught.value.remedy
    record = json.loads((interrupted / "run.json").read_text())
    assert record["status"] == "interrupted", "a refused resume leaves the run as it was"


@pytest.fixture(scope="module")
def interrupted(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after its second step."""
    output = tmp_path_factory.mktemp("interrupted") / "run"
    given = four_steps(model, data, output)
    with pytest.raises(TrainingStopped):
        trained(given, watched_by(Stopper(2)))
    return output


def test_changed_data_is_refused(
    settings: TrainSettings, interrupted: Path, tmp_path: Path
) -> None:
    rows = Path(settings.data).read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*rows[:-1], '{"question": "new?", "answer": "new"}']))
    with pytest.raises(BadInput, match="data_hash"):
        trained(settings, output=str(interrupted), data=str(other), resume=True)


def test_a_change_that_is_allowed_is_recorded(settings: TrainSettings) -> None:
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(2)))
    run = trained(settings, resume=True, max_steps=5, allow_change=("max_steps",))
    assert run.record["steps"] == 5
    assert "max_steps: was 4, is 5" in run.record["notices"][0]["message"]
    with pytest.raises(BadInput, match="max_stepz"):
        trained(settings, resume=True, max_steps=6, allow_change=("max_stepz",))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_allowed_change_of_the_optimizers_settings_takes_effect(
    settings: TrainSettings, schedule: str, tmp_path: Path
) -> None:
    """The rates of the steps that follow are those of a run that had the setting from the start."""
    given = {"schedule": schedule, "warmup": 0.0, "learning_rate": 1e-3}
    other = {**given, "learning_rate": 1e-5, "weight_decay": 0.5}
    whole = trained(settings, output=str(tmp_path / "whole"), **other)
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(2)), **given)
    allowed = ("learning_rate", "weight_decay")
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(3)), resume=True, allow_change=allowed, **other)
    saved = Path(settings.output) / "checkpoints" / "step-000003" / "optimizer.json"
    assert json.loads(saved.read_text())["param_groups"][0]["weight_decay"] == 0.5
    run = trained(settings, resume=True, **other)
    rates = [line["learning_rate"] for line in run.metrics() if "loss" in line]
    assert rates[2:] == [m["learning_rate"] for m in whole.metrics() if "loss" in m][2:]
    assert rates[0] == 1e-3


@pytest.mark.skipif(not runs_8bit(torch.device("cpu")), reason="has no 8-bit AdamW on CPUs")
def test_an_optimizer_does_not_go_on_from_the_state_of_another(settings: TrainSettings) -> None:
    with pytest.raises(TrainingStopped):
        trained(settings, watched_by(Stopper(2)))
    change = {"optimizer": "adamw_8bit", "allow_change": ("optimizer",), "resume": True}
    with pytest.raises(BadInput, match=r"state of adamw,.*(?s:.)*--optimizer adamw"):
        trained(settings, **change)
    assert trained(settings, resume=True).status == "finished"


def test_a_folder_of_another_run_is_refused(settings: TrainSettings) -> None:
    first = trained(settings, max_steps=1)
    before = (first.directory / "run.json").read_bytes()
    with pytest.raises(BadInput, match=first.run_id):
        trained(settings)
    assert (first.directory / "run.json").read_bytes() == before


def test_the_plain_road_trains_the_same_and_is_recorded(
    settings: TrainSettings, tmp_path: Path
) -> None:
    fast = trained(settings)
    padded = trained(settings, packing=False, output=str(tmp_path / "padded"))
    assert padded.record["fast_path"]["head"] == "label-only"
    assert padded.record["fast_path"]["batches"] == "padded"
    assert "padded-batches" not in {notice["code"] for notice in padded.record["notices"]}
    plain = trained(settings, plain=True, output=str(tmp_path / "plain"))
    road = fast.record["fast_path"]
    assert road["memory"]["layers_that"] == {"keep everything": 2}
    assert (road["head"], road["batches"], road["layers"]) == (
        "label-only", "packed", "2 of 2 by hand",
    )  # fmt: skip
    assert plain.record["fast_path"] == {"head": "plain", "batches": "padded", "layers": "own"}
    assert fast.record["loss"]["last"] == pytest.approx(plain.record["loss"]["last"], rel=1e-2)


def test_a_small_memory_budget_changes_what_layers_keep_and_not_the_result(
    settings: TrainSettings, tmp_path: Path
) -> None:
    free = trained(settings)
    tight = trained(settings, memory_budget=1e-3, output=str(tmp_path / "tight"))
    assert tight.record["fast_path"]["memory"]["layers_that"] == {"are computed again": 2}
    assert tight.record["settings"]["gradient_checkpointing"] == "on"
    assert tight.record["loss"] == free.record["loss"]


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    plain = loop_module.accumulate

    def gradients(model: Any, group: Any, learned: float, precision: Any, loss: Any) -> float:
        total = plain(model, group, learned, precision, loss)
        if group.step in bad:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return total

    monkeypatch.setattr("qlora_core.training.train.accumulate", gradients)


def test_a_skipped_step_names_its_samples(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    run = trained(settings)
    (notice,) = run.record["notices"]
    assert notice["code"] == "skipped-step"
    assert "step 2" in notice["message"]
    assert "rows.jsonl:" in notice["message"]
    assert all(bool(torch.isfinite(t).all()) for t in adapter(run).values())


def test_numbers_that_stay_infinite_stop_the_run_without_a_result(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 3, 4})
    with pytest.raises(TrainingStopped, match="3 steps in a row"):
        trained(settings)
    record = json.loads((Path(settings.output) / "run.json").read_text())
    assert record["status"] == "stopped"
    assert not (Path(settings.output) / "adapter").exists()


def test_a_model_that_does_not_learn_fails_and_says_so(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(model: Any, group: Any, learned: float, precision: Any, loss: Any) -> float:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        return 1.0

    monkeypatch.setattr("qlora_core.training.train.accumulate", nothing)
    with pytest.raises(CheckFailed, match="got no usable gradient"):
        trained(settings)
    assert json.loads((Path(settings.output) / "run.json").read_text())["status"] == "failed"


def test_running_out_of_memory_is_explained(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, loss: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("qlora_core.training.train.accumulate", full)
    with pytest.raises(TrainingStopped, match=r"(?s)Tried to allocate.*head and loss"):
        trained(settings)


def test_early_stop_keeps_the_best_adapter(settings: TrainSettings, tmp_path: Path) -> None:
    """Evaluated on an answer that begins like those of training, and then is another one."""
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"question": "what is 1?", "answer": "it is QX"}))
    run = trained(
        settings, max_steps=60, learning_rate=0.02, schedule="constant", warmup=0.0,
        eval_data=str(others), eval_every=1, early_stop=2, save_every=60,
    )  # fmt: skip
    losses = {m["step"]: m["eval_loss"] for m in run.metrics() if m.get("eval_loss") and m["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert run.record["steps"] == best + 2 < 60
    assert run.record["adapter_step"] == run.record["evaluation"]["best_step"] == best
    assert run.record["evaluation"]["after"] == losses[best]
    saved = (run.checkpoints / f"step-{best:06d}" / "adapter_model.safetensors").read_bytes()
    assert same(load_bytes(saved), adapter(run))
    assert [n["code"] for n in run.record["notices"]] == ["early-stop"]


@pytest.mark.parametrize("how", ["nested", "file"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_loads(
    settings: TrainSettings, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(setup, "load_base")  # which would load it
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    output = blocked if how == "file" else blocked / "run"
    with pytest.raises(BadInput, match="blocked"):
        trained(settings, output=str(output))


def test_a_warm_up_longer_than_the_run_is_refused_before_the_model_loads(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(setup, "load_base")
    for start in (train, dry_run):
        with pytest.raises(BadInput, match="warmup = 100 steps, and the run has 4"):
            start(dataclasses.replace(settings, warmup=100))
    assert not Path(settings.output).exists()


def test_a_refused_run_leaves_nothing(settings: TrainSettings, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": 1}\n{')
    for changes in ({"data": str(broken)}, {"targets": "q_prj"}, {"max_length": 2}):
        with pytest.raises(BadInput):
            trained(settings, **changes)
        assert not Path(settings.output).exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(settings: TrainSettings) -> None:
    one = trained(settings, dropout=0.0, batch_size=4, eval_split=0.3)
    two = dataclasses.replace(settings, dropout=0.0, eval_split=0.3, output=settings.output + "-2")
    code = (
        "from qlora_core.training.settings import settings_from\n"
        "from qlora_core.training.train import train\n"
        f"train(settings_from(None, {dataclasses.asdict(two)!r}))\n"
    )
    script = Path(settings.output).with_suffix(".py")
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for name, tensor in adapter(one).items():
        torch.testing.assert_close(adapter(Path(two.output))[name], tensor, atol=1e-5, rtol=1e-4)
    for line, other in zip(one.metrics(), Run(Path(two.output), {}).metrics(), strict=True):
        for key in ("tokens", "learned_tokens", "eval_tokens"):
            assert line.get(key) == other.get(key)
        loss = "loss" if "loss" in line else "eval_loss"
        assert line[loss] == pytest.approx(other[loss], rel=1e-4)


def test_gradient_checkpointing_trains_the_same_adapters(settings: TrainSettings) -> None:
    kept = trained(settings, gradient_checkpointing="off", output=settings.output + "-kept")
    again = trained(settings, gradient_checkpointing="on")
    assert same(adapter(kept), adapter(again))


def test_observers_hear_of_everything(settings: TrainSettings) -> None:
    heard: list[str] = []

    class Ears:
        @hookimpl
        def qlora_run_started(self, run: Run) -> None:
            heard.append(f"started {run.record['steps']}")

        @hookimpl
        def qlora_step_finished(self, run: Run, step: dict[str, Any]) -> None:
            heard.append(f"step {step['step']}")

        @hookimpl
        def qlora_checkpoint_saved(self, run: Run, path: Path) -> None:
            heard.append(path.name)

        @hookimpl
        def qlora_run_finished(self, run: Run, outcome: str) -> None:
            heard.append(outcome)

    trained(settings, watched_by(Ears()), max_steps=2)
    assert heard == ["started 0", "step 1", "step 2", "step-000002", "finished"]


def test_a_dry_run_needs_no_weights_and_writes_nothing(
    settings: TrainSettings, model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    found = dry_run(dataclasses.replace(settings, model=str(bare), max_steps=None, epochs=2.0))
    assert found.steps == 2 * math.ceil(22 / 4)
    assert found.inputs.data.report.train_samples == 22
    assert found.memory.total > 0
    assert json.loads(json.dumps(found.to_dict()))["steps"] == found.steps
    assert not Path(settings.output).exists()


def test_settings_survive_the_record(settings: TrainSettings) -> None:
    assert settings_from(None, dataclasses.asdict(settings)) == settings
