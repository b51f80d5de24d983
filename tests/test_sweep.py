"""A sample of the sweep: the suites run, and each can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exams.sweep import detection, fallback, legacy, nf4, time_travel, zoo
from exams.sweep.judge import judge
from qlora_core import detect
from qlora_core.registry.detect import installed
from qlora_core.registry.detection import Fit
from qlora_core.testing.cases import require_class


def example(name: str) -> zoo.Config:
    """The family's example, or a skip where transformers is older than its facts."""
    family = installed().architectures[name]
    require_class(family, family.example["model_type"])
    return dict(family.example)


def test_every_type_is_detected_by_name_without_torch() -> None:
    assert [case.name for case in detection.names(1000, 0) if not case.passed] == []


def test_every_legacy_name_resolves_and_no_code_of_a_checkpoint_runs() -> None:
    assert [case.name for case in legacy.cases(1, 0) if not case.passed] == []


@pytest.mark.parametrize("name", ["llama", "falcon", "mamba", "qwen2_moe", "bert_cross_attention"])
def test_stated_targets_are_those_that_learn(name: str) -> None:
    config = example(name)
    assert detection.objections(config, detect(config).architecture) == []


def test_the_judge_notices_a_router_a_head_a_dead_layer_and_a_forgotten_one() -> None:
    config = example("bert_cross_attention")
    family = detect(config).architecture
    wrong = replace(family.targets, mlp=("intermediate.dense",), outside=(), never={})
    said = "; ".join(detection.objections(config, replace(family, targets=wrong)))
    assert "crossattention" in said
    assert "does not learn" in said
    assert "learns and carries no adapter" in said
    verdicts = judge(zoo.build(example("qwen2_moe")), "qwen2_moe")
    barred = {path.rpartition(".")[2]: verdict.barred for path, verdict in verdicts.items()}
    assert (barred["shared_expert_gate"], barred["lm_head"]) == ("router", "head")


@pytest.mark.parametrize("name", ["mamba2", "zamba", "rwkv", "xlnet", "git"])
def test_a_type_that_others_fail_on_is_sound_in_4_bits(name: str, tmp_path: Path) -> None:
    case = nf4.examined(name, example(name), tmp_path)
    assert case.passed, case.detail


def test_the_exam_of_4_bit_models_notices_a_weight_that_no_call_reads(tmp_path: Path) -> None:
    config = example("rwkv")
    family = replace(detect(config).architecture, prepare_model=None)
    case = nf4.examined("rwkv without its hook", config, tmp_path, family)
    assert "in evaluation mode" in case.detail


def test_on_the_day_it_appears_a_type_is_read_off_its_structure() -> None:
    config = example("qwen3_5_text")
    found = detect(config, registry=time_travel.frozen())
    assert found.fit is Fit.FALLBACK
    assert fallback.differences(
        detect(config).architecture, found.architecture, fallback.analyse(zoo.build(config))
    ) == []  # fmt: skip
