"""Saved tensors are found again by plain PEFT, or it is said that they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from exams.suite import Case, Outcome
from exams.sweep import nf4, zoo
from qlora_core import attach
from qlora_core.models.adapter_checks import adapter_report
from qlora_core.models.peft_keys import load_tensors, spell
from qlora_core.models.trained import put_on, read_adapter
from qlora_core.training import checkpoints

RENAMES = Version(peft.__version__) >= Version("0.19")
WEIGHTS = "adapter_model.safetensors"


def trained(kind: str, folder: Path) -> Any:
    """A model of ``kind`` whose base is saved, with an adapter that computes something."""
    if kind not in zoo.text_models():
        pytest.skip(f"this transformers does not know {kind}")
    zoo.save(zoo.text_models()[kind], folder)
    model = attach(nf4._load(folder, None).model, rank=4)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=draw)
    return model.eval()


@pytest.mark.skipif(not RENAMES, reason="this PEFT takes all names as they are")
@pytest.mark.parametrize("by_us", [True, False])
def test_names_that_peft_mistakes_for_old_ones_are_saved_twice_and_found(
    by_us: bool, tmp_path: Path
) -> None:
    model = trained("laguna", tmp_path / "base")
    words = zoo.text(model)
    expected = nf4.logits(model, words)
    folder = tmp_path / "adapter"
    if by_us:
        folder.mkdir()
        checkpoints.write_adapter(folder, model, checkpoints.adapter_tensors(model))
    else:
        model.save_pretrained(folder)
    own, saved = peft.get_peft_model_state_dict(model), load_file(folder / WEIGHTS)
    assert load_tensors(folder / WEIGHTS).keys() == own.keys()
    assert {name.replace("shared_expert.", "shared_experts.") for name in saved} == own.keys()
    assert len(saved) == len(own) + 6
    size = (folder / WEIGHTS).stat().st_size
    assert size <= checkpoints.adapter_bytes(model, checkpoints.adapter_tensors(model))
    plain = peft.PeftModel.from_pretrained(nf4._load(tmp_path / "base", None).model, str(folder))
    assert torch.equal(nf4.logits(plain.eval(), words), expected)
    again = put_on(
        nf4._load(tmp_path / "base", None).model, read_adapter(folder, base=tmp_path / "base")
    )
    assert torch.equal(nf4.logits(again, words), expected)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    checkpoints.load_adapter(folder, model)
    assert torch.equal(nf4.logits(model, words), expected)


@pytest.mark.skipif(not RENAMES, reason="this PEFT takes all names as they are")
def test_what_plain_peft_will_not_load_is_said_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained("inkling2_text", tmp_path / "base")
    assert "will not load their adapters (model.layers.1.self_attn.k_sconv" in caplog.text
    assert "merge" in caplog.text
    lost = adapter_report(model)["lost_in_plain_peft"]
    assert {path.rpartition(".self_attn.")[2] for path in lost} == {
        "k_sconv.weight_proj", "v_sconv.weight_proj",
    }  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="missing adapter keys") as said:
        peft.PeftModel.from_pretrained(
            nf4._load(tmp_path / "base", None).model, str(tmp_path / "adapter")
        )
    missing = " ".join(str(warning.message) for warning in said)
    assert all(path in missing for path in lost)


def test_names_of_other_types_are_left_alone(tmp_path: Path, caplog: Any) -> None:
    model = trained("llama", tmp_path / "base")
    assert spell(model) == type(spell(model))()
    assert type(model) is peft.PeftModelForCausalLM
    assert "plain PEFT" not in caplog.text


@pytest.mark.parametrize("noted", ["[", "5", '{"a": 1}', "[[1]]"])
def test_a_strangers_note_of_second_names_hides_no_tensor(noted: str, tmp_path: Path) -> None:
    tensors = {"a.lora_A.weight": torch.ones(1), "b.lora_A.weight": torch.ones(1)}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"second names": noted})
    assert load_tensors(tmp_path / WEIGHTS).keys() == tensors.keys()


def test_exceptions_of_an_exam_are_counted_said_and_kept() -> None:
    outcome = Outcome("nf4", "all is well", 2, 0)
    outcome.add(Case("zamba", True, exceptions=("merging: refused",)))
    outcome.add(Case("llama", True))
    assert outcome.holds
    assert "2 of 2 cases (asked 2), 1 exceptions" in outcome.said()
    assert "EXCEPTION zamba: merging: refused" in outcome.said()
    assert outcome.to_dict()["exceptions"] == ["zamba: merging: refused"]
