"""The choice of a family, and every reason for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_registry import family, plugin, record

from qlora_core import LoraTargets, Registry, detect
from qlora_core.errors import BadInput, DetectionError, QloraError
from qlora_core.registry.detection import Fit, judge
from qlora_core.registry.targets import resolve_targets


def registry_of(*plugins: tuple[str, Any]) -> Registry:
    registry = Registry()
    for name, value in plugins:
        registry.add(value, record(name))
    return registry


def large(config: Any) -> bool:
    """The model is large."""
    return config.get("hidden_size", 0) > 1000


TOY = family("toy", class_names=("Toy*ForCausalLM",))
LARGE = family("large", model_types=("toy",), where=large)


@pytest.mark.parametrize(
    ("config", "name", "fit"),
    [
        ({"model_type": "toy"}, "toy", "model_type"),
        ({"model_type": "toy", "hidden_size": 5000}, "large", "refined"),
        ({"model_type": "new", "architectures": ["ToyXForCausalLM"]}, "toy", "class_name"),
        ({"model_type": "wrap", "text_config": {"model_type": "toy"}}, "toy", "model_type"),
    ],
)
def test_the_most_specific_claim_wins(config: dict[str, Any], name: str, fit: str) -> None:
    for order in ((TOY, LARGE), (LARGE, TOY)):
        found = detect(config, registry=registry_of(("p", plugin(*order)))).to_dict()
        assert (found["architecture"]["name"], found["architecture"]["fit"]) == (name, fit)


def test_two_equal_claims_are_an_error_that_names_both_and_the_remedies() -> None:
    other = family("other", model_types=("toy",))
    registry = registry_of(("one", plugin(TOY)), ("two", plugin(other)))
    with pytest.raises(DetectionError) as error:
        detect({"model_type": "toy"}, registry=registry)
    for part in ("plugin 'one' of one-package", "plugin 'two'", "--architecture", "supersedes"):
        assert part in str(error.value)


def test_a_family_may_supersede_another() -> None:
    other = family("other", model_types=("toy",), supersedes=("toy",))
    registry = registry_of(("one", plugin(TOY)), ("two", plugin(other)))
    assert detect({"model_type": "toy"}, registry=registry).architecture is other


def test_a_named_architecture_wins_over_every_claim() -> None:
    registry = registry_of(("p", plugin(TOY, LARGE)))
    found = detect({"model_type": "new"}, architecture="large", registry=registry)
    assert found.architecture is LARGE
    assert "named by --architecture" in found.reason


def test_an_unknown_architecture_lists_the_nearest() -> None:
    with pytest.raises(BadInput, match="close: toy"):
        detect({"model_type": "toy"}, architecture="toi", registry=registry_of(("p", plugin(TOY))))


def test_a_model_type_that_nobody_knows_lists_the_nearest() -> None:
    with pytest.raises(DetectionError, match="close: toy"):
        detect({"model_type": "tooy"}, registry=registry_of(("p", plugin(TOY))))


def test_only_the_fallback_answers_for_an_unknown_type_and_says_so() -> None:
    guess = family("guess")
    fallback = plugin(qlora_infer_architecture=lambda config: guess)
    registry = registry_of(("p", plugin(TOY)), ("f", fallback))
    assert detect({"model_type": "toy"}, registry=registry).architecture is TOY
    found = detect({"model_type": "new"}, registry=registry)
    assert (found.architecture, found.fit.name, found.provided_by) == (
        guess,
        "FALLBACK",
        "f-package",
    )


def test_every_family_gives_a_verdict_with_a_reason() -> None:
    found = detect({"model_type": "toy"}, registry=registry_of(("p", plugin(TOY, LARGE))))
    assert [(v.name, v.fit.name) for v in found.verdicts] == [
        ("toy", "MODEL_TYPE"),
        ("large", "NONE"),
    ]
    assert (
        found.verdicts[1].reason
        == "model_type is 'toy' but it does not hold that The model is large"
    )


TARGETS = family(
    targets=LoraTargets(
        attention=("q_proj", "self_attention.dense"),
        mlp=("up",),
        recurrent=("in_proj",),
        experts=("experts.up",),
        never={"gate": "it routes"},
        outside=("vision_tower",),
        keep_unquantized={"out_proj": "a kernel reads it"},
    )
)


@pytest.mark.parametrize(
    ("scope", "modules", "parameters"),
    [
        ("attention", ["q_proj", "self_attention.dense"], []),
        ("all", ["q_proj", "self_attention.dense", "up", "in_proj"], []),
        ("all,experts", ["q_proj", "self_attention.dense", "up", "in_proj"], ["experts.up"]),
        ("up, q_proj", ["up", "q_proj"], []),
        ("gate", ["gate"], []),
        (r".*\.0\.up", r".*\.0\.up", []),
    ],
)
def test_a_scope_means_these_layers(scope: str, modules: Any, parameters: list[str]) -> None:
    found = resolve_targets(TARGETS, scope)
    assert (found.target_modules, found.target_parameters) == (modules, parameters)
    assert found.keep_unquantized == ["lm_head", "out_proj"]
    assert found.exclude_modules == r"(.*\.)?(vision_tower)(\..*)?"


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("q_prj", "close: q_proj"),
        ("", "selects no layer"),
        ("experts,", "selects no layer"),
        ("(q_proj", "no valid expression"),
    ],
)
def test_a_scope_that_cannot_be_is_bad_input(scope: str, message: str) -> None:
    architecture = family() if message == "selects no layer" else TARGETS
    with pytest.raises(BadInput, match=message):
        resolve_targets(architecture, scope)


def folder_with(tmp_path: Path, text: str | bytes, name: str = "config.json") -> Path:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "a", "model_type": "b"}', "stands twice"),
        ('{"model_type": NaN}', "NaN"),
        ("[" * 100_000, "nested too deep|not valid JSON"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "model_type.* is 3, expected text"),
        (" " * (4 * 2**20 + 1), "has 4,194,305 bytes"),
    ],
)
def test_a_broken_config_gives_one_clear_message(tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        detect(folder_with(tmp_path, text))


def test_a_config_that_links_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    secret = folder_with(tmp_path, '{"model_type": "toy"}', "secret.json")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(secret / "secret.json")
    with pytest.raises(BadInput, match="outside the folder"):
        detect(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "it is a LoRA adapter"),
        ("params.json", "original release"),
        ("model.gguf", "GGUF"),
        ("notes.txt", "has no config.json"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        detect(folder_with(tmp_path, "{}", name))


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_never_asks_the_hub(name: str) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        detect(name)


def test_detection_of_a_mapping_equals_that_of_its_file(tmp_path: Path) -> None:
    config = {"model_type": "toy", "hidden_size": 5}
    registry = registry_of(("p", plugin(TOY)))
    by_path = detect(folder_with(tmp_path, json.dumps(config)), registry=registry).to_dict()
    by_mapping = detect(config, registry=registry).to_dict()
    assert {**by_path, "model": ""} == {**by_mapping, "model": ""}


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "already-quantized"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "remote-code"),
        ({"architectures": ["ToyForSequenceClassification"]}, "head"),
    ],
)
def test_what_a_config_hides_is_said(config: dict[str, Any], code: str) -> None:
    found = detect({"model_type": "toy", **config}, registry=registry_of(("p", plugin(TOY))))
    assert [w.code for w in found.warnings] == [code]


def test_detect_says_what_it_takes() -> None:
    with pytest.raises(QloraError, match="cannot use a int"):
        detect(3)


def test_infinity_is_read_as_published_configs_hold_it(tmp_path: Path) -> None:
    for number, value in enumerate(("Infinity", '{"__float__": "Infinity"}')):
        (tmp_path / str(number)).mkdir()
        folder = folder_with(
            tmp_path / str(number), f'{{"model_type": "mamba2", "time_step_limit": [0, {value}]}}'
        )
        assert detect(folder).config["time_step_limit"] == [0, float("inf")]


def test_a_condition_that_cannot_read_a_config_is_a_reason_and_no_crash() -> None:
    verdict = judge(LARGE, {"model_type": "toy", "hidden_size": "5000"})
    assert verdict.fit is Fit.NONE
    assert "whether The model is large cannot be told: TypeError" in verdict.reason
