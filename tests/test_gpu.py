"""The road on a GPU: `pytest -m gpu`. Skips where there is none; under 10 minutes.

QLORA_GPU_DEVICE=cpu runs the same tests on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import qlora_base
import tiny
import torch
from qlora_base.evaluate import chat_accuracy
from qlora_base.questions import read_questions

from qlora_core import TrainSettings, load, train
from qlora_core.models.loader import load_model
from qlora_core.models.merge import merge
from qlora_core.training.progress import Silent

DEVICE = os.environ.get("QLORA_GPU_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
DTYPES = ("bfloat16", "float16")
"""As on a current card, and as on a T4: with loss scaling."""


def settings(output: Path, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "model": str(qlora_base.MODEL), "data": str(qlora_base.TRAINING_ROWS),
        "eval_data": str(qlora_base.HELD_OUT_ROWS), "output": str(output), "device": DEVICE,
        "max_steps": 20, "batch_size": 16, "gradient_accumulation": 1, "learning_rate": 1e-3,
        "max_length": 128, "sample_prompts": 0, "seed": 1,
    }  # fmt: skip
    return TrainSettings(**(values | changes))


def lines(output: Path) -> list[dict[str, Any]]:
    text = (output / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_model_learns_the_chat_format(tmp_path: Path, dtype: str) -> None:
    run = train(settings(tmp_path / "run", compute_dtype=dtype, max_steps=300), progress=Silent())
    assert run.record["hardware"]["compute_dtype"].endswith(dtype)
    model, tokenizer = load(qlora_base.MODEL, device=DEVICE)
    model = peft.PeftModel.from_pretrained(model, str(tmp_path / "run" / "adapter"))
    result = chat_accuracy(model, tokenizer, read_questions(qlora_base.HELD_OUT_ROWS))
    assert result.accuracy >= 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_every_step_is_finite_and_the_loss_falls(
    tmp_path: Path, dtype: str, checkpointing: str
) -> None:
    train(
        settings(tmp_path, compute_dtype=dtype, gradient_checkpointing=checkpointing),
        progress=Silent(),
    )
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert all(line["gradient_norm"] is not None for line in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(line["peak_memory_bytes"] > 0 for line in steps)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_32bit"])
def test_a_run_resumes_with_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    if DEVICE == "cpu" and optimizer.startswith("paged"):
        pytest.skip("paging needs a CUDA device")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    shared = {"optimizer": optimizer, "save_every": 5, "keep": 10}
    train(settings(straight, **shared), progress=Silent())
    train(settings(resumed, **shared), progress=Silent())
    record = json.loads((resumed / "run.json").read_text())
    (resumed / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    shutil.rmtree(resumed / "adapter")
    for step in (15, 20):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:06d}")
    train(settings(resumed, resume=True, **shared), progress=Silent())
    losses = [[line["loss"] for line in lines(o) if "loss" in line] for o in (straight, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_neox", "gpt2", "mixtral", "gemma"])
def test_a_tiny_model_of_each_kind_is_4_bit_and_equal_to_its_dequantized_weights(
    tmp_path: Path, family: str
) -> None:
    folder = tiny.save(family, tmp_path)
    on_device = load_model(folder, device=DEVICE, compute_dtype=torch.float32)
    on_device.quantization.require_complete()
    on_cpu = load_model(folder, device="cpu", compute_dtype=torch.float32)
    ids = tiny.tokens()
    with torch.no_grad():
        here = on_device.model(ids.to(on_device.device)).logits.float().cpu()
        there = on_cpu.model(ids).logits.float()
    assert (here - there).abs().max() <= 0.02 * there.abs().max()


def test_the_merged_model_says_what_the_unmerged_one_says(tmp_path: Path) -> None:
    train(settings(tmp_path / "run"), progress=Silent())
    report = merge(tmp_path / "run", tmp_path / "merged", device=DEVICE)
    assert report.lines()


def test_the_memory_plan_is_near_the_measured_peak(tmp_path: Path) -> None:
    if DEVICE == "cpu":
        pytest.skip("the CPU's plan is tested in test_memory.py")
    run = train(settings(tmp_path), progress=Silent())
    planned = run.record["memory"]["planned_total_bytes"]
    measured = run.record["memory"]["measured_peak_bytes"]
    print(f"planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB (allocator)")
    assert measured <= planned


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_samples_train_as_padded_ones(tmp_path: Path, dtype: str) -> None:
    losses = []
    for plain in (False, True):
        output = tmp_path / f"plain {plain}"
        run = train(settings(output, compute_dtype=dtype, plain=plain), progress=Silent())
        assert run.record["fast_path"]["batches"] == ("padded" if plain else "packed")
        losses.append([line["loss"] for line in lines(output) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
