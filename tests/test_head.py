"""The label-only head: the model's own loss and gradient, without its logits."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.kernels.head import Head, tiles
from qlora_core.kernels.head_probe import LabelHead, Unfit, find_head
from qlora_core.training.losses import label_only_loss, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import choose_road
from qlora_core.training.runs import Run, new_record

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 307, "pad_token_id": None,
}  # fmt: skip
SMALL_GPT2 = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 307, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "llama tied": {**SHAPE, "tie_word_embeddings": True},
    "mistral": SHAPE,
    "qwen2": SHAPE,
    "qwen3": {**SHAPE, "head_dim": 16},
    "gemma2": {**SHAPE, "head_dim": 16, "final_logit_softcapping": 3.0},
    "gemma3_text": {**SHAPE, "head_dim": 16},
    "phi": SHAPE,
    "falcon": {**SHAPE, "multi_query": True},
    "gpt_neox": SHAPE,
    "gpt2": SMALL_GPT2,
    "cohere": {**SHAPE, "logit_scale": 0.0625},
    "granite": {**SHAPE, "logits_scaling": 8.0},
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(" ")[0], **FAMILIES[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.get_output_embeddings().weight.mul_(4)  # logits that a cap bends
    return adapted(model.to(dtype))


def adapted(model: Any) -> peft.PeftModel:
    kinds = ("Linear", "Conv1D")
    head = model.get_output_embeddings()  # its name differs between families and releases
    linears = [
        path
        for path, m in model.named_modules()
        if type(m).__name__.endswith(kinds) and m is not head
    ]
    names = {path.rpartition(".")[2] for path in linears} - {"out_proj"}
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=sorted(names), init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def batch(seed: int = 2) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 307, (3, 17), generator=drawn)
    mask = torch.ones_like(ids)
    mask[1, 12:], mask[2, 5:] = 0, 0
    labels = torch.where((torch.rand(ids.shape, generator=drawn) < 0.5) & mask.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    found = [p.grad.flatten().float() for p in model.parameters() if p.requires_grad]
    return torch.cat(found).clone()


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_the_models_own(name: str) -> None:
    model = build(name)
    own = summed_loss(model, batch())
    expected = gradients(model, own)
    loss = label_only_loss(find_head(model, nullcontext))(model, batch())
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradients(model, loss), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_its_gradient_is_as_exact_as_the_plain_one(name: str) -> None:
    """Over several batches: on a single one rounding favours now one road, now the other."""
    model = build(name)
    for parameter in model.parameters():  # values that both dtypes hold
        parameter.data = parameter.data.bfloat16().float()
    batches = [batch(seed) for seed in range(2, 8)]
    references = [gradients(model, summed_loss(model, b)) for b in batches]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def error(road: Any) -> float:
        total = 0.0
        for data, reference in zip(batches, references, strict=True):
            with autocast():
                loss = road(model, data)
            total += float((gradients(model, loss) - reference).norm() / reference.norm())
        return total

    fast = label_only_loss(find_head(model, autocast))
    assert 0 < error(fast) <= 1.1 * error(summed_loss)


@pytest.mark.parametrize("certainty", [0.9, 0.999, 0.9999])
def test_in_float16_what_a_certain_model_still_learns_is_not_lost(certainty: float) -> None:
    """The loss is scaled after the head's gradient is made: as large as a scaler begins with."""
    torch.manual_seed(0)
    weight, hidden = ((torch.randn(8192, 64) + 1) / 8).half(), torch.randn(1, 64).half()
    module = torch.nn.Linear(64, 8192, dtype=torch.float16)
    with torch.no_grad():
        module.weight.copy_(weight)
        logits = hidden.double() @ weight.double().T
        odds = logits[0, 1:].logsumexp(0) - logits[0, 0]
        module.bias.zero_()[0] = odds + math.log(certainty / (1 - certainty))
    module.requires_grad_(False)
    exact = hidden.double().requires_grad_()
    wide = exact @ module.weight.double().T + module.bias.double()
    torch.nn.functional.cross_entropy(wide, torch.tensor([0])).backward()
    narrow = hidden.clone().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = Head(module).summed_cross_entropy(narrow, torch.tensor([0]))
    (65536 * loss).backward()
    found = narrow.grad.double() / 65536
    assert torch.cosine_similarity(found, exact.grad) > 0.9999
    assert found.norm() == pytest.approx(float(exact.grad.norm()), rel=0.05)  # logits in float16


@pytest.mark.parametrize(("name", "scale", "cap"), [
    ("llama", 1.0, None), ("cohere", 0.0625, None), ("granite", 0.125, None), ("gemma2", 1.0, 3.0),
])  # fmt: skip
def test_what_follows_the_head_is_measured(name: str, scale: float, cap: float | None) -> None:
    head = find_head(build(name), nullcontext).head
    assert head.scale == pytest.approx(scale, rel=1e-5)
    assert head.cap == (None if cap is None else pytest.approx(cap, rel=1e-5))


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 257, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_odd_vocabularies_and_biases_in_many_tiles(
    vocabulary: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_core.kernels.head.LEAST_ROWS", 16)
    monkeypatch.setattr(tiles, "__defaults__", (1,))
    torch.manual_seed(0)
    module = torch.nn.Linear(24, vocabulary, bias=bias).requires_grad_(False)
    hidden = torch.randn(37, 24, requires_grad=True)
    answers = torch.randint(vocabulary, (37,))
    expected = torch.nn.functional.cross_entropy(module(hidden), answers, reduction="sum")
    loss = Head(module).summed_cross_entropy(hidden, answers)
    torch.testing.assert_close(loss, expected)
    (own,) = torch.autograd.grad(expected, hidden)
    (ours,) = torch.autograd.grad(3 * loss, hidden)
    torch.testing.assert_close(ours, 3 * own, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements that any result of an operation has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = 640, 5000
    monkeypatch.setattr("qlora_core.kernels.head.LEAST_ROWS", 16)
    monkeypatch.setattr(tiles, "__defaults__", (6 * vocabulary * 32,))
    module = torch.nn.Linear(16, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(rows, 16, requires_grad=True)
    with Largest() as largest:
        loss = Head(module).summed_cross_entropy(hidden, torch.randint(vocabulary, (rows,)))
        loss.backward()
    assert 32 * vocabulary == largest.elements


def test_nothing_to_learn_gives_a_zero_loss_with_a_gradient() -> None:
    module = torch.nn.Linear(4, 9).requires_grad_(False)
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = Head(module).summed_cross_entropy(hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None


def test_without_a_gradient_none_is_computed() -> None:
    module = torch.nn.Linear(4, 9).requires_grad_(False)
    with torch.no_grad():
        loss = Head(module).summed_cross_entropy(torch.randn(3, 4), torch.tensor([1, 2, 3]))
    assert not loss.requires_grad


def test_checkpointed_layers_give_the_same_gradient() -> None:
    model = build("llama")
    road = label_only_loss(find_head(model, nullcontext))
    expected = gradients(model, road(model, batch()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, road(model, batch())), expected)


def test_a_trained_head_is_left_to_the_model() -> None:
    model = build("llama")
    model.get_output_embeddings().weight.requires_grad_(True)
    with pytest.raises(Unfit, match="trained"):
        find_head(model, nullcontext)


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_adapted_head_is_left_to_the_model(where: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    names = {"target_modules": ["q_proj"]} | (
        {"target_modules": ["q_proj", "lm_head"]} if where == "target_modules"
        else {"modules_to_save": ["lm_head"]}
    )  # fmt: skip
    with pytest.raises(Unfit, match="head"):
        find_head(peft.get_peft_model(model, peft.LoraConfig(r=2, **names)), nullcontext)


def test_logits_that_no_formula_explains_are_left_to_the_model() -> None:
    model = build("llama")
    base = model.get_base_model()
    plain = base.forward

    def bent(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = output.logits + output.logits.square() * 1e-3
        return output

    base.forward = bent
    with pytest.raises(Unfit, match="no scaled or capped products"):
        find_head(model, nullcontext)


def test_a_decoder_whose_output_is_changed_before_the_head_is_left_to_the_model() -> None:
    model = build("llama")
    base = model.get_base_model()
    base.model.register_forward_hook(
        lambda _, __, output: output.__setitem__("last_hidden_state", 2 * output[0])
    )
    assert isinstance(find_head(model, nullcontext), LabelHead)  # a hook belongs to the module
    plain = base.forward

    def halved(**inputs: Any) -> Any:
        with base.model.norm.register_forward_hook(lambda _, __, output: output / 2):
            return plain(**inputs)

    base.forward = halved
    with pytest.raises(Unfit, match="something else"):
        find_head(model, nullcontext)


def test_looking_for_the_head_leaves_the_model_as_it_was() -> None:
    model = build("llama")
    model.get_base_model().model.layers[0].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_head(model, nullcontext)
    assert before == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_says_why_it_does_not_take_the_fast_head(tmp_path: Path) -> None:
    model = build("llama")
    run = Run(tmp_path, new_record())
    assert (
        choose_road(run, model, Precision(torch.device("cpu")), plain=False).loss is not summed_loss
    )
    assert not run.record["notices"]
    model.get_output_embeddings().weight.requires_grad_(True)
    assert choose_road(run, model, Precision(torch.device("cpu")), plain=False).loss is summed_loss
    (notice,) = run.record["notices"]
    assert notice["code"] == "plain-head"
    assert "its output head is trained" in notice["message"]
