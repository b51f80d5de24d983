"""The exam notices what it is there to notice, and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_core import LoraTargets, PromptFormat, TokenizerPolicy
from qlora_core.registry.detect import installed
from qlora_core.testing import ArchitectureContract
from qlora_core.testing.cases import Case


def fails(promise: str, name: str, **changes: Any) -> str:
    """What the exam says to our family ``name`` once its facts are changed."""
    family = replace(installed().architectures[name], **changes)
    case = Case(family, str(family.example["model_type"]))
    with pytest.raises(AssertionError) as failure:
        getattr(ArchitectureContract(), promise)(case)
    return str(failure.value)


def targets(name: str, **changes: Any) -> LoraTargets:
    return replace(installed().architectures[name].targets, **changes)


def test_a_misspelt_target_is_found_and_the_real_layers_are_listed() -> None:
    said = fails(
        "test_every_target_is_a_linear_layer_of_a_decoder_layer",
        "falcon",
        targets=targets("falcon", attention=("q_proj",)),
    )
    assert "'q_proj' hits no module" in said
    assert "query_key_value" in said


def test_a_name_that_also_means_the_head_is_found() -> None:
    changed = targets("llama", mlp=("gate_proj", "up_proj", "down_proj", "lm_head"))
    promise = "test_head_embeddings_routers_and_towers_carry_no_adapter"
    assert "lm_head" in fails(promise, "llama", targets=changed)


def test_a_name_that_also_means_layers_of_a_tower_is_found() -> None:
    promise = "test_head_embeddings_routers_and_towers_carry_no_adapter"
    said = fails(promise, "gemma3", targets=targets("gemma3", outside=()))
    assert "vision_tower" in said
    assert "`outside`" in said


def test_a_forgotten_layer_is_found() -> None:
    changed = targets("gpt2", mlp=("mlp.c_fc",))
    promise = "test_no_linear_layer_is_forgotten"
    assert "transformer.h.0.mlp.c_proj" in fails(promise, "gpt2", targets=changed)


def test_a_layer_left_out_with_a_reason_is_not_forgotten() -> None:
    family = installed().architectures["llama"]
    stated = replace(family.targets, mlp=("gate_proj", "up_proj"), never={"down_proj": "a reason"})
    case = Case(replace(family, targets=stated), "llama")
    ArchitectureContract().test_no_linear_layer_is_forgotten(case)


def test_experts_that_nobody_named_are_found() -> None:
    said = fails(
        "test_experts_are_parameters_that_exist", "mixtral", targets=targets("mixtral", experts=())
    )
    assert "experts.gate_up_proj" in said


def test_a_name_that_protects_nothing_is_found() -> None:
    changed = targets("mixtral", never={"mlp.router": "the router"})
    said = fails("test_all_other_names_exist_too", "mixtral", targets=changed)
    assert "'mlp.router'" in said


def test_a_head_of_another_name_is_found() -> None:
    layout = replace(installed().architectures["gpt_neox"].layout, head=("decoder",))
    said = fails("test_its_layout_is_where_the_parts_are", "gpt_neox", layout=layout)
    assert "layout.head lacks" in said


def test_a_format_that_never_learns_to_stop_is_found() -> None:
    prompt = PromptFormat(name="endless", user="{content}\n", assistant="{content}")
    promise = "test_only_the_answer_and_the_end_of_its_turn_are_learned"
    assert "{eos}" in fails(promise, "llama", prompt=prompt)


def test_a_bos_against_the_policy_is_found() -> None:
    policy = TokenizerPolicy(bos="forbidden")
    said = fails("test_the_prompt_begins_as_the_tokenizer_demands", "llama", tokenizer=policy)
    assert 'start to "{bos}" or ""' in said


def test_a_family_without_source_is_found() -> None:
    assert "`source`" in fails("test_it_names_its_source", "bloom", source=" ")


def test_a_family_that_detection_does_not_choose_is_found() -> None:
    other = installed().architectures["llama"].example
    said = fails("test_it_recognises_its_own_example", "mistral", example=other)
    assert "supersedes" in said


def test_a_plugin_that_is_not_installed_is_named() -> None:
    class Exam(ArchitectureContract):
        plugin = "no-such-plugin"

    with pytest.raises(AssertionError, match="no-such-plugin"):
        Exam().test_the_plugin_is_installed_and_active()


def test_a_target_that_is_no_linear_layer_is_found() -> None:
    changed = targets("llama", attention=("q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"))
    promise = "test_every_target_is_a_linear_layer_of_a_decoder_layer"
    assert "model.embed_tokens" in fails(promise, "llama", targets=changed)
