"""Names mean one thing: to detection, to us, and to plain PEFT of every supported release."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from test_detection import registry_of
from test_registry import family, plugin
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exams.sweep import nf4, plain_peft, zoo
from exams.sweep.detection import described_by_nobody
from qlora_core import LoraTargets, attach, detect, lora_config
from qlora_core.models.adapter_checks import check_gradients
from qlora_core.models.peft_names import rewritten_names
from qlora_core.registry.detect import installed
from qlora_core.registry.detection import Fit

OLD_NAMES = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
REWRITES = Version(peft.__version__) >= Version("0.19")
LATEST = Version(transformers.__version__) >= Version("5.23")
STATED = {
    kind: set(names)
    for family in installed().architectures.values()
    for kind, names in family.targets.taken_for_experts.items()
}
TAKEN = sorted(
    kind for kind in STATED
    if detect({"model_type": kind, "mlp_only_layers": [0]}).targets.renamed
)  # fmt: skip


@pytest.mark.skipif(not REWRITES, reason="this PEFT takes all names as they are")
def test_families_state_the_types_and_names_that_peft_takes_for_experts() -> None:
    def taken(kind: str) -> set[str]:
        model: Any = SimpleNamespace(config=SimpleNamespace(model_type=kind))
        return set(rewritten_names(OLD_NAMES, model))

    known = {kind for family in installed().architectures.values() for kind in family.model_types}
    found = {kind: taken(kind) for kind in known if taken(kind)}
    assert {kind: STATED.get(kind) for kind in found} == found
    assert not LATEST or STATED.keys() == found.keys()


def test_sixteen_types_have_layers_of_such_names() -> None:
    assert len(TAKEN) == 16


@pytest.mark.parametrize("kind", TAKEN)
def test_what_detection_prints_means_the_same_to_plain_peft(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not know {kind}")
    config = zoo.text_models()[kind]
    if kind == "qwen3_moe":
        config = {**config, "intermediate_size": 128, "mlp_only_layers": [0]}
    assert detect(config).targets.renamed
    assert plain_peft.differences(config) == []


@pytest.mark.skipif(not REWRITES, reason="this PEFT takes all names as they are")
def test_the_comparison_notices_names_that_peft_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**tiny.family("deepseek").example}
    monkeypatch.setattr(
        plain_peft, "as_printed",
        lambda _: peft.LoraConfig(target_modules=["o_proj", "mlp.gate_proj", "mlp.up_proj"]),
    )  # fmt: skip
    said = "; ".join(plain_peft.differences(config))
    assert "also adapts ['model.layers.1.mlp.experts.gate_up_proj']" in said
    assert "does not adapt" in said


def test_on_a_4_bit_base_plain_peft_adapts_the_printed_layers_too(tmp_path: Path) -> None:
    config = tiny.family("deepseek").example
    zoo.save({**config}, tmp_path)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantized, dtype=torch.float32
    )
    printed = detect(tmp_path).to_dict()["targets"]
    model = peft.get_peft_model(base, plain_peft.as_printed(printed))
    meant = plain_peft.adapted(attach(zoo.build({**config}), rank=4))
    assert plain_peft.adapted(model) == meant
    model.train()(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    check_gradients(model)


def test_a_saved_adapter_computes_the_same_in_plain_peft_on_the_4_bit_base(tmp_path: Path) -> None:
    zoo.save({**tiny.family("deepseek").example}, tmp_path / "base")
    model = attach(nf4._load(tmp_path / "base").model, rank=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    expected = nf4.logits(model.eval(), tiny.tokens())
    model.save_pretrained(tmp_path / "adapter")
    base = nf4._load(tmp_path / "base").model
    plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(nf4.logits(plain, tiny.tokens()), expected)


def test_the_config_from_a_detection_is_what_detection_prints() -> None:
    found = detect({**tiny.family("deepseek").example})
    config = lora_config(found)
    assert config.target_modules == set(found.targets.target_modules)
    assert config.target_parameters == ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    assert not {"gate_proj", "up_proj", "down_proj"} & config.target_modules


TOWERS = family(
    model_types=("toy",),
    targets=LoraTargets(
        attention=("o_proj",), mlp=("gate_proj",), outside=("tower",),
        taken_for_experts={"toy": ("gate_proj",)},
    ),
)  # fmt: skip


def test_what_plain_peft_cannot_be_told_is_said_with_the_remedy() -> None:
    registry = registry_of(("p", plugin(TOWERS)))
    for scope, said in (("all", "layers of a tower"), (r".*\.gate_proj", "of an expression")):
        found = detect({"model_type": "toy"}, registry=registry, targets=scope)
        assert found.targets.target_parameters == []
        assert [notice.code for notice in found.warnings] == ["names-taken-for-experts"]
        assert said in found.warnings[0].message
        assert "qlora_core.attach" in found.warnings[0].remedy
    assert detect({"model_type": "toy"}, registry=registry, targets="o_proj").warnings == ()


@pytest.mark.skipif(not REWRITES, reason="this PEFT takes all names as they are")
def test_without_its_family_a_type_is_told_to_plain_peft_in_the_same_form() -> None:
    config = {**tiny.family("deepseek").example}
    read, stated = detect(config, registry=described_by_nobody()), detect(config)
    assert read.fit is Fit.FALLBACK
    assert set(read.targets.target_modules) == set(stated.targets.target_modules)
    assert set(read.targets.target_parameters) == set(stated.targets.target_parameters)


@pytest.mark.skipif(not REWRITES, reason="this PEFT takes all names as they are")
def test_where_a_tower_bears_the_names_plain_peft_adapts_less_and_detection_says_so() -> None:
    config = zoo.every_config().get("vlm:glm4v_moe")
    if config is None:
        pytest.skip("no small config of an image-text mixture: set QLORA_TEST_DATA")
    case = plain_peft.judged("glm4v_moe", config)
    assert case.passed, case.detail
    assert "layers of a tower" in " ".join(case.exceptions)
    assert "does not adapt" in " ".join(plain_peft.differences(config))
