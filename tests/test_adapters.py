"""Adapters stand on exactly the layers asked for, in float32, and learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_core import attach, detect, lora_config
from qlora_core.errors import BadInput, CheckFailed
from qlora_core.models.adapter_checks import adapter_report, check_gradients, verify
from qlora_core.models.loader import load_model
from qlora_core.models.peft_names import rewritten_names
from qlora_core.models.selection import select_layers

LLAMA_NAMES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CALLS_EXPERTS = bool(rewritten_names(["gate_proj"], tiny.build("qwen3_moe")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(folder: Path) -> Any:
    return load_model(folder, device="cpu", compute_dtype=torch.bfloat16).model


def adapted(model: nn.Module) -> set[str]:
    return {
        path.removeprefix("base_model.model.")
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def leaves(model: nn.Module) -> set[str]:
    return {path.rpartition(".")[2] for path in adapted(model)}


def backward(model: Any) -> None:
    batch = tiny.tokens()
    extra = {}
    if model.config.model_type == "gemma3":  # asked for by transformers 5.0 when training
        extra = {"token_type_ids": torch.zeros_like(batch)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=batch, labels=batch, use_cache=False, **extra).loss.backward()


def test_all_means_every_linear_layer_of_the_decoder_and_never_the_head(llama: Any) -> None:
    assert leaves(attach(llama)) == LLAMA_NAMES
    assert len(adapted(llama)) == 14


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("q_proj,v_proj", {"q_proj", "v_proj"}),
        (["q_proj", "mlp.up_proj"], {"q_proj", "up_proj"}),
        ("attention,down_proj", {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}),
        (r".*\.layers\.1\..*_proj", LLAMA_NAMES),
    ],
)
def test_targets_mean_what_they_say(llama: Any, targets: Any, expected: set[str]) -> None:
    assert leaves(attach(llama, targets=targets)) == expected


def test_an_expression_reaches_only_what_it_matches(llama: Any) -> None:
    model = attach(llama, targets=r".*\.layers\.1\.self_attn\..*")
    assert adapted(model) == {
        f"model.layers.1.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }


def test_what_an_expression_matches_in_vain_is_said_with_the_reason(
    llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expression = r".*\.q_proj|lm_head|model\.embed_tokens|.*\.act_fn"
    with caplog.at_level("WARNING", logger="qlora-core"):
        model = attach(llama, targets=expression)
    assert leaves(model) == {"q_proj"}
    (said,) = [r.getMessage() for r in caplog.records if "puts no adapter" in r.getMessage()]
    assert "puts no adapter on 2 modules" in said
    assert "1 (model.embed_tokens): no linear layer" in said
    assert "1 (lm_head): it is the output head" in said


@pytest.mark.parametrize("targets", ["all", "q_proj,v_proj", r".*\.layers\.1\..*_proj"])
def test_targets_that_all_get_an_adapter_give_no_notice(llama: Any, targets: str) -> None:
    assert select_layers(llama, tiny.family("llama"), targets).notices == ()


def test_layers_of_a_tower_that_an_expression_matches_are_said() -> None:
    model, family = tiny.build("gemma3"), tiny.family("gemma3")
    (notice,) = select_layers(model, family, r".*\.q_proj").notices
    assert "no part of the text model" in notice.message
    assert "vision" in notice.message


def test_a_misspelt_target_lists_the_candidates(llama: Any) -> None:
    with pytest.raises(BadInput, match=r"called 'gate_prj'; close: gate_proj") as caught:
        attach(llama, targets="q_proj,gate_prj")
    assert "gate_proj (2 of 64->128)" in caught.value.remedy
    assert adapted(llama) == set()


def test_an_expression_without_a_hit_is_an_error(llama: Any) -> None:
    with pytest.raises(BadInput, match="matches no linear layer"):
        attach(llama, targets=r".*\.nothing")


def test_the_head_cannot_be_asked_for(llama: Any) -> None:
    with pytest.raises(BadInput, match="output head"):
        attach(llama, targets="q_proj,lm_head")


def test_gpt_neox_head_carries_no_adapter(tmp_path: Path) -> None:
    model = load_model(tiny.save("gpt_neox", tmp_path), device="cpu").model
    head = model.get_output_embeddings()
    wrapped = attach(model)
    assert wrapped.get_output_embeddings() is head
    assert not isinstance(head, LoraLayer)
    assert leaves(wrapped) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert len(adapted(wrapped)) == 8


@pytest.mark.parametrize("family", ["falcon", "gpt2", "mixtral", "gemma3", "phi"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_learns_in_the_first_step(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    model = attach(
        load_model(tiny.save(family, tmp_path), device="cpu").model,
        gradient_checkpointing=checkpointing,
    ).train()
    backward(model)
    check_gradients(model)
    if family == "gemma3":
        assert not any("vision" in path for path in adapted(model))


def test_an_adapter_without_a_gradient_is_named(llama: Any) -> None:
    model = attach(llama, targets="attention").train()
    with pytest.raises(CheckFailed, match="8 adapters got no usable gradient"):
        check_gradients(model)
    backward(model)
    gradient = next(p.grad for n, p in model.named_parameters() if "1.self_attn.v_proj.lora_B" in n)
    gradient.zero_()
    with pytest.raises(CheckFailed, match=r"1 adapters .*layers\.1\.self_attn\.v_proj"):
        check_gradients(model)
    gradient.fill_(float("nan"))
    with pytest.raises(CheckFailed, match=r"layers\.1\.self_attn\.v_proj"):
        check_gradients(model)


def test_only_adapters_are_trainable_and_they_are_float32(llama: Any) -> None:
    model = attach(llama, dora=True)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_a_model_that_somebody_else_loaded_is_frozen_and_adapted() -> None:
    plain = tiny.build("llama")
    model = attach(plain)
    assert len(adapted(model)) == 14
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    backward(model.train())
    check_gradients(model)


def test_a_second_attach_is_refused(llama: Any) -> None:
    model = attach(llama)
    with pytest.raises(BadInput, match="already"):
        attach(model)
    with pytest.raises(BadInput, match="already"):
        attach(model.get_base_model())


def test_verification_notices_what_peft_wrapped_otherwise(llama: Any) -> None:
    architecture = tiny.family("llama")
    wanted = select_layers(llama, architecture, "attention")
    less = select_layers(llama, architecture, "q_proj")
    model = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
    with pytest.raises(CheckFailed, match="6 layers carry no adapter"):
        verify(model, wanted)
    with pytest.raises(CheckFailed, match="2 layers carry an adapter unasked"):
        verify(model, less)


def test_options_are_those_of_peft(llama: Any) -> None:
    config = lora_config(llama, rank=4, dropout=0.1, rslora=True, targets="attention")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert (config.use_rslora, config.use_dora, config.bias) == (True, False, "none")
    assert lora_config(llama, rank=4, alpha=32).lora_alpha == 32


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_impossible_options_are_refused(llama: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        lora_config(llama, **wrong)


def test_a_detection_gives_the_same_config_as_the_model(llama: Any, folder: Path) -> None:
    stated, found = lora_config(detect(folder)), lora_config(llama)
    assert stated.target_modules == found.target_modules == LLAMA_NAMES


def test_the_report_counts_by_role_and_names_what_is_left_out(llama: Any) -> None:
    model = attach(llama, rank=8, targets="attention")
    report = adapter_report(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report["parameters"] == report["by_role"]["attention"]["parameters"] == trainable
    assert report["by_role"]["attention"]["names"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert report["not_adapted"] == {"gate_proj": 2, "up_proj": 2, "down_proj": 2, "lm_head": 1}
    base = 106_816  # every weight of the example, 4-bit ones as what they stand for
    assert report["fraction"] == pytest.approx(trainable / (base + trainable))


def test_the_adapter_gives_the_same_logits_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    model = attach(load_model(folder, device="cpu").model, rank=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        expected = model.eval()(input_ids=tiny.tokens()).logits
    model.save_pretrained(tmp_path)
    base = load_model(folder, device="cpu").model
    plain = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=tiny.tokens()).logits, expected)


def test_mixtral_all_is_attention_and_its_routed_experts_are_asked_for(tmp_path: Path) -> None:
    model = load_model(tiny.save("mixtral", tmp_path), device="cpu").model
    wrapped = attach(model)
    assert leaves(wrapped) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert wrapped.peft_config["default"].target_parameters in (None, [], set())


def test_experts_in_16_bits_can_be_adapted(tmp_path: Path) -> None:
    model = tiny.build("mixtral")
    wrapped = attach(model, targets="attention,experts", rank=2)
    report = adapter_report(wrapped)
    assert report["by_role"]["experts"]["modules"] == 4
    assert report["by_role"]["attention"]["modules"] == 8
    with pytest.raises(BadInput, match="dropout"):
        attach(tiny.build("mixtral"), targets="experts", dropout=0.1)


@pytest.mark.skipif(not CALLS_EXPERTS, reason="this PEFT takes all names as they are")
def test_an_expression_on_such_a_model_still_means_its_own_layers() -> None:
    model = attach(tiny.build("mixtral"), targets=r".*\.layers\.1\.self_attn\.q_proj")
    assert adapted(model) == {"model.layers.1.self_attn.q_proj"}
