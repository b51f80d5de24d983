"""A 4-bit folder is the same model again, here and in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from qlora_core.cli.main import main
from qlora_core.models.loader import load_model
from qlora_core.models.store import quantize

IDS = torch.arange(1, 33).view(2, 16)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_plain_transformers_opens_the_folder_and_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    report = quantize(tiny.save(name, tmp_path / "base"), tmp_path / "q", device="cpu")
    assert report.ours_only == ()
    ours = load_model(tmp_path / "q", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", device_map="cpu")
    for module in theirs.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    assert ours.quantization.method == "nf4"
    assert sum(isinstance(module, Linear4bit) for module in theirs.modules()) > 0
    assert torch.equal(logits(ours.model), logits(theirs))


def test_layers_of_a_class_that_transformers_leaves_in_16_bits_are_named(tmp_path: Path) -> None:
    report = quantize(tiny.save("falcon", tmp_path / "base"), tmp_path / "q", device="cpu")
    assert any("query_key_value" in path for path in report.ours_only)
    assert "opens in qlora-core only" in report.lines()[-1]
    assert load_model(tmp_path / "q", device="cpu").quantization.missed == ()


@pytest.mark.parametrize("name", ["mixtral", "mamba"])
def test_experts_and_weights_that_kernels_read_are_kept_in_4_bits(
    name: str, tmp_path: Path
) -> None:
    report = quantize(tiny.save(name, tmp_path / "base"), tmp_path / "q", device="cpu")
    base, ours = (load_model(tmp_path / f, device="cpu") for f in ("base", "q"))
    assert ours.quantization.quantized == base.quantization.quantized
    assert torch.equal(logits(base.model), logits(ours.model))
    assert report.ours_only


def test_what_is_4_bit_already_and_what_exists_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = str(tiny.save("llama", tmp_path / "base")), str(tmp_path / "q")
    assert main(["quantize", base, "--output", folder, "--device", "cpu"]) == 0
    assert "opens in qlora-core and in plain transformers" in capsys.readouterr().out
    assert main(["quantize", base, "--output", folder]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["quantize", folder, "--output", str(tmp_path / "again")]) == 2
    assert "4-bit already" in capsys.readouterr().err
