"""The examples for other trainers run as they stand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import qlora_base
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import qlora_core
from qlora_core.cli.snippets import snippet
from qlora_core.models.adapter_checks import adapter_report

ROOT = Path(__file__).resolve().parents[1]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["transformers_trainer", "trl_sft"])
def test_a_trainer_of_others_trains_our_parts(name: str, tmp_path: Path) -> None:
    pytest.importorskip("trl" if name == "trl_sft" else "transformers")
    torch.manual_seed(0)
    output = tmp_path / "out"
    example(name).main(str(qlora_base.MODEL), str(qlora_base.TRAINING_ROWS), str(output), 2)
    model, _ = qlora_core.load(qlora_base.MODEL, device="cpu")
    adapted = PeftModel.from_pretrained(model, str(output))
    names = {n.rpartition(".lora_B")[0] for n, _ in adapted.named_parameters() if "lora_B" in n}
    assert len(names) == 4 * 7, "seven layers in each of four decoder layers"
    moved = [float(p.detach().abs().max()) for n, p in adapted.named_parameters() if "lora_B" in n]
    assert all(moved), "an adapter that stayed zero did not learn"


def test_the_printed_snippet_for_peft_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = snippet(qlora_core.detect(qlora_base.MODEL), "peft", 8)
    exec(compile(code, "snippet", "exec"), {})
    trainable = re.search(r"trainable params: ([\d,]+)", capsys.readouterr().out).group(1)
    assert trainable == "163,840"


@pytest.mark.parametrize("targets", ["all", "all,experts"])
def test_the_printed_snippet_for_a_mixture_of_experts_adapts_what_was_asked(
    targets: str, tmp_path: Path
) -> None:
    tiny.save("deepseek", tmp_path)
    code = snippet(qlora_core.detect(tmp_path, targets=targets), "peft", 8)
    found: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), found)
    adapted = adapter_report(found["model"])["by_role"]
    assert adapted["mlp"]["modules"] == 6
    assert ("experts" in adapted) == ("experts" in targets)


def test_the_printed_snippet_says_so_when_nothing_became_4_bit(tmp_path: Path) -> None:

    folder = tiny.save("falcon", tmp_path)
    code = compile(snippet(qlora_core.detect(folder), "peft", 8), "snippet", "exec")
    settings = BitsAndBytesConfig(load_in_4bit=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
    if any(type(module).__name__ == "Linear4bit" for module in plain.modules()):
        exec(code, {})  # transformers 5.0 still converted subclasses
        return
    with pytest.raises(AssertionError, match=r"qlora_core.load\(\) does not"):
        exec(code, {})


@pytest.mark.parametrize("target", ["peft", "trl"])
@pytest.mark.parametrize("family", ["gemma3", "mixtral", "gpt2"])
def test_a_snippet_is_python_for_every_shape_of_targets(target: str, family: str) -> None:

    detection = qlora_core.detect(dict(tiny.family(family).example))
    compile(snippet(detection, target, 16), "snippet", "exec")
