"""Published shapes, up to 180 billion parameters: the right family, the right targets."""

from __future__ import annotations

import time
from typing import Any

import pytest
from real_configs import OLD_FALCON, REAL, Real

from qlora_core import detect
from qlora_core.errors import BadInput
from qlora_core.models.coverage import with_structure
from qlora_core.models.skeleton import build_skeleton

names = pytest.mark.parametrize("real", REAL, ids=[real.name for real in REAL])


@names
def test_the_family_and_its_targets_are_found(real: Real) -> None:
    found = detect(real.config)
    assert (found.architecture.name, found.fit.name) == (real.family, "MODEL_TYPE")
    assert found.targets.target_modules == real.targets


@names
def test_the_skeleton_has_the_published_size_and_agrees_with_the_family(real: Real) -> None:
    started = time.process_time()
    found = with_structure(detect(real.config), rank=16)
    assert time.process_time() - started < 10
    assert found.coverage is not None
    assert found.trainable_parameters is not None
    base = found.trainable_parameters["count"] * (1 / found.trainable_parameters["fraction"] - 1)
    assert base / 1e9 == pytest.approx(real.billions, rel=0.01)
    assert [w.code for w in found.warnings if w.code != "remote-code"] == []
    assert found.coverage["layers"] == 1.0
    if real.family != "mixtral":
        assert found.coverage["weights"] == 1.0


def test_only_embeddings_norms_and_head_of_a_70b_model_stay_in_16_bits() -> None:
    found = with_structure(detect(REAL[0].config))
    assert found.coverage is not None
    matrices, norms = 2 * 128256 * 8192, (2 * 80 + 1) * 8192
    assert found.coverage["unquantized_bytes"] == 2 * (matrices + norms)


def test_the_experts_of_mixtral_are_adapted_only_when_asked_for() -> None:
    plain = with_structure(detect(REAL[2].config), rank=16)
    more = with_structure(detect(REAL[2].config, targets="all,experts"), rank=16)
    assert plain.coverage is not None
    assert more.coverage is not None
    assert plain.coverage["by_role"]["experts"]["adapted"] == 0
    assert more.coverage["by_role"]["experts"]["adapted"] == 64
    assert more.coverage["weights"] == 1.0
    assert plain.trainable_parameters == {**plain.trainable_parameters, "count": 13_631_488}


@pytest.mark.parametrize("size", OLD_FALCON)
def test_the_first_names_of_falcon_are_known_and_their_code_is_not_run(size: str) -> None:
    found = detect(OLD_FALCON[size])
    assert found.architecture.name == "falcon"
    assert "remote-code" in [w.code for w in found.warnings]


def test_a_type_that_transformers_does_not_know_either_is_bad_input_with_the_nearest_name() -> None:
    with pytest.raises(BadInput, match=r"does not know model_type 'lama'; close: .*llama"):
        detect({"model_type": "lama"})


def test_a_type_with_code_of_its_own_says_how_to_allow_it() -> None:
    with pytest.raises(BadInput, match="--trust-remote-code"):
        detect({"model_type": "homemade", "auto_map": {"AutoConfig": "config.Homemade"}})


@pytest.mark.parametrize("wrong", [{"num_attention_heads": 0}, {"hidden_size": "wide"}])
def test_values_that_cannot_be_built_are_bad_input(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="cannot build this 'llama' config"):
        build_skeleton({"model_type": "llama", **wrong})


def test_a_model_that_writes_no_text_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no text generator"):
        build_skeleton({"model_type": "vit"})
