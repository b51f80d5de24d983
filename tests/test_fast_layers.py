"""Decoder layers by hand: their own output and gradients, whatever they keep."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_head import SHAPE, adapted, batch, gradients
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.kernels import fast_layers, packing
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.kernels.layer_state import Keep
from qlora_core.models.adapters import attach, enable_checkpointing
from qlora_core.models.loader import load_model
from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import installed
from qlora_core.training.losses import Loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import (
    REPAYS,
    choose_road,
    compile_where_it_repays,
    packed_loss,
)
from qlora_core.training.runs import Run, new_record

HEADS = {**SHAPE, "head_dim": 16}
FITTING: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "llama with biases": {**SHAPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SHAPE, "sliding_window": 4},
    "qwen2": SHAPE,
    "qwen3": HEADS,
    "gemma2": {**HEADS, "attn_logit_softcapping": 0.5, "sliding_window": 4},
    "gemma3_text": {**HEADS, "sliding_window": 4},
    "phi3": {**SHAPE, "bos_token_id": 1, "eos_token_id": 2},
}


def attention_of(name: str) -> str | None:
    """By SDPA early releases of transformers leave out this family's cap, without a word."""
    return "eager" if name == "gemma2" else None


def build(name: str, **lora: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(" ")[0], **FITTING[name])
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention_of(name)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if not lora:
        return adapted(model)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": names, "init_lora_weights": False, **lora}
    return peft.get_peft_model(model, peft.LoraConfig(**settings)).train()


def by_hand(model: Any) -> tuple[Loss, FastLayers]:
    parts = find_head(model, nullcontext)
    base = model.get_base_model()
    packing.prepare(base, parts, nullcontext)
    return packed_loss(parts), fast_layers.install(base, parts, nullcontext)


def computed(model: Any, loss: Loss, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)  # of dropout
    found = loss(model, batch())
    return found.detach(), gradients(model, found)


@pytest.mark.parametrize("name", FITTING)
def test_loss_and_gradient_are_the_models_own_whatever_layers_keep(name: str) -> None:
    model = build(name)
    own, expected = computed(model, summed_loss)
    loss, fast = by_hand(model)
    assert len(fast.layers) == 2
    assert not fast.refused
    found = []
    for keep in Keep:
        for layer in fast.layers.values():
            layer.keep = keep
        found.append(computed(model, loss))
        require_close(found[-1], (own, expected))
    assert all(torch.equal(gradient, found[0][1]) for _, gradient in found)


@pytest.mark.parametrize("keep", Keep)
def test_dropout_draws_the_masks_that_peft_draws(keep: Keep) -> None:
    model = build("llama", lora_dropout=0.4)
    loss, _ = padded_free(model)
    own = computed(model, loss, seed=5)
    loss, fast = by_hand(model)
    for layer in fast.layers.values():
        layer.keep = keep
    require_close(computed(model, loss, seed=5), own)
    assert not torch.allclose(computed(model, loss, seed=6)[0], own[0])


def require_close(
    found: tuple[torch.Tensor, torch.Tensor], own: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.testing.assert_close(found[0], own[0], rtol=1e-5, atol=0)
    assert float((found[1] - own[1]).norm() / own[1].norm()) < 1e-5


def test_the_last_layer_computes_the_tokens_that_answer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("llama")
    loss, fast = by_hand(model)
    first, last = fast.layers.values()
    rows: dict[int, set[int]] = {id(first): set(), id(last): set()}
    for layer in (first, last):
        monkeypatch.setattr(layer.down, "forward", counted(layer, rows))
    computed(model, loss)
    learned = int((batch()["labels"][:, 1:] != -100).sum())
    assert rows == {id(first): {int(batch()["attention_mask"].sum())}, id(last): {learned}}


def counted(layer: Any, rows: dict[int, set[int]]) -> Any:
    plain = layer.down.forward

    def forward(x: torch.Tensor, **given: Any) -> Any:
        rows[id(layer)].add(len(x))
        return plain(x, **given)

    return forward


def test_a_last_layer_that_also_comes_earlier_computes_every_token() -> None:
    model = build("llama")
    decoder = model.get_base_model().model
    decoder.layers.append(decoder.layers[0])
    decoder.config.num_hidden_layers, decoder.config.use_cache = 3, False
    own = computed(model, summed_loss)
    loss, fast = by_hand(model)
    assert len(fast.layers) == 3
    assert fast.narrow is None
    require_close(computed(model, loss), own)


def padded_free(model: Any) -> tuple[Loss, Any]:
    """Packed rows through the layers' own code: the same masks need the same rows."""
    parts = find_head(model, nullcontext)
    packing.prepare(model.get_base_model(), parts, nullcontext)
    return packed_loss(parts), parts


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["up_proj"]},
    ],
    ids=["rslora", "attention only", "one of a pair"],
)
def test_any_plain_choice_of_adapters_is_computed(lora: dict[str, Any]) -> None:
    model = build("llama", **lora)
    own = computed(model, summed_loss)
    loss, fast = by_hand(model)
    assert len(fast.layers) == 2
    require_close(computed(model, loss), own)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", FITTING)
def test_in_four_bits_and_bfloat16_its_gradient_is_as_exact_as_pefts(
    name: str, dropout: float, tmp_path: Path
) -> None:
    exact, model = (
        quantized(name, FITTING[name], dtype, dropout, tmp_path)
        for dtype in (torch.float32, torch.bfloat16)
    )
    parts = find_head(model, autocast)
    packing.prepare(model.get_base_model(), parts, autocast)
    reference_loss, _ = padded_free(exact)
    seeds = range(2, 14)
    references = [together(exact, reference_loss, seed, nullcontext) for seed in seeds]
    plain = [together(model, packed_loss(parts), seed, autocast) for seed in seeds]
    fast = fast_layers.install(model.get_base_model(), parts, autocast)
    assert len(fast.layers) == 2
    ours = [together(model, packed_loss(parts), seed, autocast) for seed in seeds]
    assert error(ours, references) <= 1.2 * error(plain, references)


def quantized(
    name: str, values: dict[str, Any], dtype: torch.dtype, dropout: float, folder: Path
) -> Any:
    """The same random model in 4 bits, with the same adapters, computing in ``dtype``."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(" ")[0], **values)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    base = load_model(
        folder, compute_dtype=dtype, device="cpu", attn_implementation=attention_of(name)
    ).model
    model = attach(base, rank=4, dropout=dropout).train()
    drawn = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = 0.2 * parameter.shape[-1] ** -0.5  # as after some training
            parameter.data = torch.randn(parameter.shape, generator=drawn) * spread
    return model


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def together(model: Any, loss: Loss, seed: int, precision: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    with precision():
        found = loss(model, batch(seed))
    return gradients(model, found)


def error(found: list[torch.Tensor], references: list[torch.Tensor]) -> float:
    pairs = zip(found, references, strict=True)
    return sum(float((a - b).norm() / b.norm()) for a, b in pairs)


def test_padded_batches_generation_and_the_bare_model_are_as_before() -> None:
    model = build("qwen3").eval()
    rows = batch()
    given = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    asked = {"max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        logits, said = model(**given).logits, model.generate(rows["input_ids"][:1], **asked)
        with model.disable_adapter():
            bare = summed_loss(model, rows)
        loss, _ = by_hand(model)
        assert torch.equal(model(**given).logits, logits)
        assert torch.equal(model.generate(rows["input_ids"][:1], **asked), said)
        with model.disable_adapter():
            torch.testing.assert_close(loss(model, rows), bare, rtol=1e-5, atol=0)


def test_layers_that_were_to_recompute_keep_their_input_alone() -> None:
    model = build("llama")
    enable_checkpointing(model.get_base_model())
    _, fast = by_hand(model)
    assert {layer.keep for layer in fast.layers.values()} == {Keep.INPUT}


def test_a_second_backward_pass_is_refused() -> None:
    model = build("llama")
    loss, _ = by_hand(model)
    found = loss(model, batch())
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        found.backward()


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        (
            "granite",
            {"residual_multiplier": 0.5},
            "its layers d",
        ),  # differ, or do not give them alone
        ("phi", {}, "part that is not known"),
        ("gpt_neox", {}, "part that is not known"),
        ("olmo2", {}, "more than a head"),
    ],
)
def test_a_layer_of_another_shape_computes_by_its_own_code_and_says_so(
    name: str, values: dict[str, Any], why: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SHAPE, **values})
    model = adapted(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    run = Run(tmp_path, new_record())
    loss = choose_road(run, model, Precision(torch.device("cpu")), plain=False).loss
    assert run.record["fast_path"]["layers"] == "own"
    notice = run.record["notices"][-1]
    assert notice["code"] == "own-layers"
    assert why in notice["message"]
    torch.testing.assert_close(loss(model, batch()), summed_loss(model, batch()), rtol=1e-4, atol=0)


def test_layers_that_are_given_no_rotations_compute_by_their_own_code(tmp_path: Path) -> None:
    family = installed().architectures["moshi"]
    torch.manual_seed(0)
    model = attach(build_skeleton(family.example, device="cpu"), architecture=family, rank=4)
    run = Run(tmp_path, new_record())
    choose_road(run, model, Precision(torch.device("cpu")), plain=False)
    assert run.record["fast_path"]["layers"] == "own"
    if run.record["fast_path"]["batches"] == "padded":
        pytest.skip("this transformers mixes its packed samples")
    assert "position_embeddings" in run.record["notices"][-1]["message"]


def test_adapters_that_are_no_plain_lora_are_left_to_peft() -> None:
    model = build("llama", use_dora=True)
    with pytest.raises(Unfit, match="no plain LoRA"):
        by_hand(model)


def test_the_proof_sees_one_layer_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    odd = model.get_base_model().model.layers[1]
    plain = type(odd).forward

    class Odd(type(odd)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
            return plain(self, hidden_states, **named) * 1.01

    odd.__class__ = Odd
    _, fast = by_hand(model)
    assert list(fast.layers) == ["layers.0"]
    assert list(fast.refused) == ["layers.1"]


def test_checkpointing_that_comes_later_goes_around_the_layers_that_are_not_by_hand() -> None:
    """As where the plan for the chosen road no longer fits: transformers marks every layer."""
    model = build("llama")
    loss, fast = by_hand(model)
    expected = gradients(model, loss(model, batch()))
    enable_checkpointing(model.get_base_model())
    fast.recompute_by_themselves()
    marked = [getattr(module, "gradient_checkpointing", False) for module in fast.modules]
    assert len(marked) == 2
    assert not any(marked)
    torch.testing.assert_close(gradients(model, loss(model, batch())), expected)


def test_parameters_and_their_names_stay_as_they_are() -> None:
    model = build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    by_hand(model)
    after = model.state_dict()
    assert list(before) == list(after)
    assert identities == [id(p) for p in model.parameters()]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert copy.deepcopy(model.peft_config) == model.peft_config


def test_a_long_run_compiles_and_a_short_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fast = by_hand(build("llama"))
    run = Run(tmp_path, new_record())
    run.record["fast_path"] = {}
    compiled = []
    monkeypatch.setattr(fast, "compile", lambda dtype: compiled.append(dtype) or 1.0)
    precision = Precision(torch.device("cpu"))
    for asked, work in (("auto", 0.0), ("off", 2 * REPAYS)):
        compile_where_it_repays(run, fast, precision, asked=asked, work=work)
        assert run.record["fast_path"]["elementwise"] == "tiles"
    assert not compiled
    for asked, work in (("on", 0.0), ("auto", 2 * REPAYS)):
        compile_where_it_repays(run, fast, precision, asked=asked, work=work)
        assert run.record["fast_path"]["elementwise"] == "compiled"
    assert len(compiled) == 2


def test_without_a_compiler_layers_go_on_eagerly_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    loss, fast = by_hand(model)
    own = computed(model, loss)

    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    run = Run(tmp_path, new_record())
    run.record["fast_path"] = {}
    precision = Precision(torch.device("cpu"))
    compile_where_it_repays(run, fast, precision, asked="on", work=0.0)
    assert run.record["fast_path"] == {"elementwise": "tiles"}
    notice = run.record["notices"][-1]
    assert notice["code"] == "not-compiled"
    assert "no compiler found" in notice["message"]
    assert torch.equal(computed(model, loss)[1], own[1])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs g++")
def test_compiled_layers_give_the_same_gradients() -> None:
    for name in ("qwen3", "gemma2"):
        model = build(name)
        loss, fast = by_hand(model)
        own = computed(model, loss)
        assert fast.compile(torch.float32) > 0
        require_close(computed(model, loss), own)
