"""Linear layers fused with their adapters, in families whose layers are not computed by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from test_fast_layers import autocast, computed, error, quantized, require_close, together
from test_head import FAMILIES, SHAPE, adapted, batch, build
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.kernels import fast_linears
from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.models.adapters import enable_checkpointing
from qlora_core.training.losses import label_only_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import choose_road
from qlora_core.training.runs import Run, new_record

OTHERS = ["phi", "falcon", "gpt_neox", "cohere", "llama"]


def fused(model: Any) -> int:
    return fast_linears.install(
        model.get_base_model(), find_head(model, nullcontext), nullcontext, but=()
    )


def own_loss(model: Any) -> Any:
    return label_only_loss(find_head(model, nullcontext))


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_loss_and_gradient_are_pefts(name: str, recomputing: bool) -> None:
    model = build(name)
    if recomputing:
        enable_checkpointing(model.get_base_model())
    own = computed(model, own_loss(model))
    adapters = sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in model.modules())
    assert fused(model) == adapters
    require_close(computed(model, own_loss(model)), own)


@pytest.mark.parametrize("name", ["phi", "falcon", "gpt_neox", "gpt2"])
def test_in_four_bits_and_bfloat16_its_gradient_is_as_exact_as_pefts(
    name: str, tmp_path: Path
) -> None:
    exact, model = (
        quantized(name, FAMILIES[name], dtype, 0.1, tmp_path)
        for dtype in (torch.float32, torch.bfloat16)
    )
    seeds = range(2, 14)
    references = [together(exact, own_loss(exact), seed, nullcontext) for seed in seeds]
    loss = label_only_loss(find_head(model, autocast))
    plain = [together(model, loss, seed, autocast) for seed in seeds]
    parts = find_head(model, autocast)
    assert fast_linears.install(model.get_base_model(), parts, autocast, but=()) >= 8
    ours = [together(model, loss, seed, autocast) for seed in seeds]
    assert error(ours, references) <= 1.2 * error(plain, references)


def test_layers_with_one_input_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    fused(model)
    loss, widths = own_loss(model), []
    plain = fast_linears.Group.forward

    def watched(group: Any, x: torch.Tensor) -> Any:
        widths.append(group.outputs)
        return plain(group, x)

    monkeypatch.setattr(fast_linears.Group, "forward", watched)
    loss(model, batch())
    assert widths == [[64, 32, 32], [64], [96, 96], [64]] * 2


@pytest.mark.parametrize("recomputing", [False, True])
def test_dropout_draws_the_masks_that_peft_draws(recomputing: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("phi", **SHAPE)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False, lora_dropout=0.4),
    ).train()
    if recomputing:
        enable_checkpointing(model.get_base_model())
    own = computed(model, own_loss(model), seed=5)
    assert fused(model) == 12
    require_close(computed(model, own_loss(model), seed=5), own)


def test_without_gradients_and_with_adapters_off_the_layers_are_pefts_own() -> None:
    model = build("gpt_neox").eval()
    given = {"input_ids": batch()["input_ids"]}
    with torch.no_grad():
        logits = model(**given).logits
        with model.disable_adapter():
            bare = model(**given).logits
    fused(model)
    with torch.no_grad():
        assert torch.equal(model(**given).logits, logits)
    with model.disable_adapter():
        assert torch.equal(model(**given).logits, bare)


def test_linear_layers_that_are_called_twice_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("phi")
    mlp = model.get_base_model().model.layers[0].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(plain(x)))
    own = computed(model, own_loss(model))
    assert fused(model) == 10
    require_close(computed(model, own_loss(model)), own)


def test_without_plain_adapters_there_is_nothing_to_fuse() -> None:
    model = build("gpt2")  # its layers are no nn.Linear
    with pytest.raises(Unfit, match="no linear layers"):
        fused(model)


def test_a_layer_that_does_more_than_its_parts_say_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("phi")
    odd = model.get_base_model().model.layers[0].mlp.fc1
    plain = odd.forward
    monkeypatch.setattr(odd, "forward", lambda x: plain(x) * 1.1)
    assert fused(model) == 11


@pytest.mark.parametrize(
    ("name", "batches", "linears"), [("falcon", "padded", "8 of 8"), ("phi", "packed", "12 of 12")]
)
def test_a_run_says_how_its_linear_layers_are_computed(
    name: str, batches: str, linears: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **FAMILIES[name])
    model = adapted(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    run = Run(tmp_path, new_record())
    choose_road(run, model, Precision(torch.device("cpu")), plain=False)
    taken = run.record["fast_path"]
    assert (taken["batches"], taken["linears"]) == (batches, f"{linears} fused")
