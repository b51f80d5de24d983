"""Expert stacks in 4 bits: one expert at a time, adapters on the tokens, files that PEFT reads."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch.nn.functional import linear

from exams.soak.small import bench
from exams.sweep import experts, zoo
from qlora_core.errors import BadInput, TrainingStopped
from qlora_core.kernels import nf4
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.adapter_checks import adapter_report, check_gradients
from qlora_core.models.adapters import attach, lora_config
from qlora_core.models.expert_adapters import expert_layers
from qlora_core.models.loader import load_model
from qlora_core.models.merge import merge
from qlora_core.models.peft_names import rewritten_names
from qlora_core.models.trained import put_on, read_adapter
from qlora_core.registry.hooks import hookimpl
from qlora_core.registry.manager import PluginRecord, Registry
from qlora_core.training.progress import Silent
from qlora_core.training.train import train

FLOAT32 = {"hardware": {"compute_dtype": "torch.float32"}, "settings": {"quantize": "nf4"}}
EXACT = 1e-4
"""How far apart logits may be that are equal but for the order of float32 sums."""


def stack_of(values: torch.Tensor, *, nested: bool = True, kind: str = "nf4") -> ExpertStack:
    packed, state = quantize_4bit(values, compress_statistics=nested, quant_type=kind, blocksize=64)
    return ExpertStack(packed, state)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(4, 64, 128), (5, 24, 40), (3, 6, 10), (300, 8, 64)])
def test_an_expert_is_the_same_alone_as_in_the_whole_stack(
    shape: tuple[int, ...], kind: str, nested: bool
) -> None:
    torch.manual_seed(0)
    stack = stack_of(torch.randn(shape), nested=nested, kind=kind)
    whole = dequantize_4bit(stack.packed.data, stack.state)
    for number in (0, 1, shape[0] - 1):
        assert torch.equal(stack.whole().one(number).frozen(), whole[number])
    assert torch.equal(stack.whole().frozen(), whole)


def test_products_and_their_gradients_are_those_of_the_dense_weight() -> None:
    torch.manual_seed(0)
    stack = stack_of(torch.randn(3, 64, 32))
    dense = stack.whole().frozen()
    for ask in (
        lambda x, w: linear(x[0], w[1]),
        lambda x, w: linear(x[0], w[torch.tensor(2)], torch.ones(64)),
        lambda x, w: x[0] @ w[1].T,
        lambda x, w: x[0].matmul(w[0].t()),
        lambda x, w: torch.bmm(x, w.transpose(1, 2)),
        lambda x, w: x[0] @ w.view(3, 32, 64)[1],
        lambda x, w: torch.einsum("ti,oi->to", x[0], w[1]),  # nothing special: dequantized
    ):
        results = []
        for weight in (stack, dense):
            torch.manual_seed(1)
            x = torch.randn(3, 5, 32, requires_grad=True)
            y = ask(x, weight)
            y.sin().sum().backward()
            results.append((y, x.grad))
        (own, own_gradient), (expected, gradient) = results
        assert torch.allclose(own, expected, atol=1e-5)
        assert torch.allclose(own_gradient, gradient, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
def test_a_stack_quantized_in_parts_has_the_bytes_of_the_whole(nested: bool) -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 64, 96).bfloat16()
    parts = [piece for expert in whole for piece in expert.chunk(2)]
    how: dict[str, Any] = {"quant_type": "nf4", "nested": nested}
    packed, state = nf4.quantize_parts(parts, whole.shape, **how)
    expected, other = nf4.quantize(whole, **how)
    assert not parts  # let go of on the way
    assert torch.equal(packed, expected)
    assert torch.equal(dequantize_4bit(packed, state), dequantize_4bit(expected, other))


def base(name: str, folder: Path, **changes: Any) -> Path:
    """In float32, so that a merge rounds nothing."""
    tiny.build(name, **changes).float().save_pretrained(folder / "base")
    return folder / "base"


def load(folder: Path, quantize: str | None = "nf4") -> Any:
    return load_model(folder, quantize=quantize, device="cpu", compute_dtype=torch.float32).model


def trained(folder: Path, targets: str = "all,experts", **options: Any) -> peft.PeftModel:
    model = attach(load(folder), targets=targets, rank=4, **options)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=draw)
    return model.eval()


def save(model: peft.PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder / "adapter")
    (folder / "run.json").write_text(json.dumps(FLOAT32))
    return folder / "adapter"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=tiny.tokens()).logits
    return result


def dequantized(model: Any, folder: Path) -> Any:
    """The 16-bit class of transformers, with the values that 4-bit weights stand for."""
    plain = load(folder, None)
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    for path, part in model.named_modules():
        path = path.replace(".base_layer", "")
        if isinstance(part, Linear4bit):
            value = dequantize_4bit(part.weight.data, part.weight.quant_state)
            plain.get_parameter(f"{path}.weight").data.copy_(value)
        elif isinstance(part, ExpertStack):
            plain.get_parameter(path).data.copy_(part.whole().frozen())
    return plain.eval()


def apart(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((own - other).abs().max() / own.std())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text", "dbrx"])
def test_4_bit_experts_compute_what_their_dequantized_weights_do(name: str, tmp_path: Path) -> None:
    model = load(base(name, tmp_path)).eval()
    assert any(isinstance(part, ExpertStack) for part in model.modules())
    plain = dequantized(model, tmp_path / "base")
    assert apart(logits(model), logits(plain)) < EXACT


@pytest.mark.parametrize("name", ["mixtral", "dbrx"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_more_than_one_expert_is_ever_dequantized(
    checkpointing: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    dequantize = ExpertStack.dequantized

    def measured(self: ExpertStack, start: int, stop: int) -> torch.Tensor:
        sizes.append((stop - start) * self.experts / self.shape.numel())
        return dequantize(self, start, stop)

    monkeypatch.setattr(ExpertStack, "dequantized", measured)
    model = attach(
        load(base(name, tmp_path)), targets="all,experts", gradient_checkpointing=checkpointing
    )
    model.train()(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    assert max(sizes) == 1
    held = torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, id)
    shapes: list[torch.Size] = []
    with held:
        model(input_ids=tiny.tokens())
    stacks = [part for part in model.modules() if isinstance(part, ExpertStack)]
    experts = {part.view(part.experts, -1, part.shape[-1])[0].shape for part in stacks}
    assert len(next(iter(experts))) == 2
    assert not experts & set(shapes)  # nor kept for the backward pass


def test_every_expert_that_saw_a_token_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = attach(load(base("mixtral", tmp_path)), targets="all,experts", rank=4)
    assert "adapters on routed experts: 16,384 parameters" in caplog.text
    report = adapter_report(model)
    assert report["by_role"]["experts"] == {
        "modules": 4, "parameters": 16_384, "names": ["base_layer", "experts"],
    }  # fmt: skip
    first = tiny.tokens()[:1, :1]
    model.train()(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    for _, layer in expert_layers(model):
        used = torch.tensor([number in layer.stack.used for number in range(4)])
        assert torch.equal(layer.gradients() > 0, used)
    check_gradients(model)
    assert "of 16 experts" in caplog.text
    model.zero_grad()
    model(input_ids=first).logits.sum().backward()  # one token: two of four experts
    assert {layer.count() for _, layer in expert_layers(model)} == {(4, 2, 2)}


def test_gradients_are_those_of_plain_peft_on_the_dequantized_base(tmp_path: Path) -> None:
    folder = base("mixtral", tmp_path)
    model = trained(folder)
    plain = peft.PeftModel.from_pretrained(
        dequantized(model, folder), save(model, tmp_path), is_trainable=True
    )
    wanted = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    for one in (model, plain):
        one(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, wanted[name].grad, atol=1e-5), name


def test_checkpointing_changes_no_gradient_of_an_expert(tmp_path: Path) -> None:
    folder, found = base("mixtral", tmp_path), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = attach(
            load(folder), targets="experts", rank=4, gradient_checkpointing=checkpointing
        ).train()
        model(input_ids=tiny.tokens(), labels=tiny.tokens()).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == 8
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["mixtral", "deepseek", "qwen3_next", "llama4_text", "jetmoe"])
def test_adapters_on_experts_reload_bit_by_bit_and_in_plain_peft_and_merge(
    name: str, tmp_path: Path
) -> None:
    folder = base(name, tmp_path)
    model = trained(folder)
    expected = logits(model)
    assert any(True for _ in expert_layers(model))
    adapter = save(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(dequantized(model, folder), adapter).eval()
    assert apart(expected, logits(plain)) < EXACT
    again = put_on(load(folder), read_adapter(adapter, base=folder))
    assert torch.equal(logits(again), expected)
    merge(adapter, tmp_path / "merged", base=folder, check=False, device="cpu")
    assert apart(expected, logits(load(tmp_path / "merged", None).eval())) < EXACT
    merge(adapter, tmp_path / "onto", base=folder, onto="original", check=False, device="cpu")
    original = put_on(load(folder, None), read_adapter(adapter, base=folder))
    assert apart(logits(original), logits(load(tmp_path / "onto", None).eval())) < EXACT


@pytest.mark.skipif(
    not rewritten_names(["gate_proj"], tiny.build("deepseek")),
    reason="this PEFT takes all names as they are",
)
def test_shared_experts_and_dense_layers_are_adapted_where_peft_means_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base("deepseek", tmp_path)
    model = trained(folder, targets="all", dropout=0.1)
    assert adapter_report(model)["by_role"]["mlp"]["modules"] == 6  # a dense layer, a shared expert
    assert adapter_report(model)["dropout"] == 0.1
    adapter = save(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(dequantized(model, folder), adapter).eval()
    assert apart(logits(model), logits(plain)) < EXACT
    config = lora_config(load(folder, None), dropout=0.1)
    assert "gate_proj.weight" in config.target_parameters
    assert config.lora_dropout == 0
    assert "plain PEFT has no dropout for" in caplog.text
    config = lora_config(load(folder), rank=4, dropout=0.1)
    assert "gate_proj.weight" in config.target_parameters
    four_bit = peft.get_peft_model(load(folder), config)
    for found in ("by_role", "dropout"):
        assert adapter_report(four_bit)[found] == adapter_report(model)[found]


def test_a_matrix_of_experts_reloads_bit_by_bit_and_merges_by_plain_peft_too(
    tmp_path: Path,
) -> None:
    folder = base("dbrx", tmp_path)
    model = trained(folder)
    expected, adapter = logits(model), save(model, tmp_path)
    again = put_on(load(folder), read_adapter(adapter, base=folder))
    assert torch.equal(logits(again), expected)
    with again.disable_adapter():
        assert torch.equal(logits(again), logits(load(folder).eval()))
    in_16_bits = put_on(dequantized(model, folder), read_adapter(adapter, base=folder))
    assert apart(expected, logits(in_16_bits)) < EXACT
    plain = peft.PeftModel.from_pretrained(dequantized(model, folder), adapter).eval()
    with pytest.raises(AttributeError):  # the limit that docs/experts.md states
        logits(plain)
    assert apart(expected, logits(plain.merge_and_unload())) < EXACT
    merge(adapter, tmp_path / "merged", base=folder, check=False, device="cpu")
    assert apart(expected, logits(load(tmp_path / "merged", None).eval())) < EXACT


@pytest.mark.parametrize("quantize", ["nf4", None])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_a_matrix_each_expert_has_rows_that_learn_from_its_tokens_alone(
    checkpointing: bool, quantize: str | None, tmp_path: Path
) -> None:
    folder, words = base("dbrx", tmp_path), tiny.tokens()[:1, :3]
    loaded = load(folder, quantize)
    plain = dequantized(loaded, folder).train()
    model = attach(loaded, targets="experts", rank=4, gradient_checkpointing=checkpointing).train()
    ours = {path.removeprefix("base_model.model."): layer for path, layer in expert_layers(model)}
    factors = {path: [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
               for path, layer in ours.items()}  # fmt: skip
    assert len(factors) == 6
    torch.nn.init.normal_(next(iter(factors.values()))[1], std=0.05)
    copies = {path: [one.detach().clone().requires_grad_() for one in pair]
              for path, pair in factors.items()}  # fmt: skip
    model(input_ids=words).logits.square().mean().backward()  # of every token, the last too
    dense = {p: plain.get_parameter(p).detach() + 2 * b @ a for p, (a, b) in copies.items()}
    result = torch.func.functional_call(plain, dense, kwargs={"input_ids": words})
    result.logits.square().mean().backward()
    for path, pair in factors.items():
        for own, copy in zip(pair, copies[path], strict=True):
            assert torch.allclose(own.grad, copy.grad, atol=1e-5), path
        used = torch.tensor([number in ours[path].stack.used for number in range(4)])
        assert torch.equal(ours[path].gradients() > 0, used)
    assert any(layer.count()[1] < 4 for layer in ours.values())  # of some no token was asked


def test_what_peft_has_no_adapter_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"hide .*mlp.w1 from the module that reads it"):
        lora_config(load(base("dbrx", tmp_path), None), targets="all,experts")
    model = load(base("mixtral", tmp_path / "other"))
    for options in ({"dropout": 0.1}, {"dora": True}):
        with pytest.raises(BadInput, match="for expert parameters"):
            attach(model, targets="all,experts", **options)
    with pytest.raises(BadInput, match="plain PEFT cannot train adapters on 4-bit expert stacks"):
        lora_config(model, targets="all,experts")
    with pytest.raises(BadInput, match="merged in place"):
        attach(model, targets="experts").merge_adapter()


class Stopper:
    """Sends this process a signal when its third step is done."""

    @hookimpl
    def qlora_step_finished(self, step: dict[str, Any]) -> None:
        if step["step"] == 3 and "loss" in step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "dbrx"])
def test_a_run_with_experts_packs_batches_and_resumes_to_the_bit(name: str) -> None:
    with bench() as made:
        # the tokenizer is the bench's; weights and config are replaced
        config = {"vocab_size": 320, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
        tiny.build(name, **config).save_pretrained(made.model)
        how = {"targets": "all,experts", "dropout": 0.0, "max_steps": 4}
        straight = train(made.settings("straight", **how), progress=Silent())
        registry = Registry.from_environment(block=["report", "tensorboard"])
        registry.add(Stopper(), PluginRecord("observer", "test", "1"))
        with pytest.raises(TrainingStopped, match="after step 3 of 4"):
            train(made.settings("run", **how), progress=Silent(), registry=registry)
        resumed = train(made.settings("run", **how, resume=True), progress=Silent())
        one, other = (
            load_file(run.adapter / "adapter_model.safetensors") for run in (straight, resumed)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        losses = [line["loss"] for line in straight.metrics() if "loss" in line]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["qwen3_moe", "dbrx"])
def test_a_sample_of_the_exam_of_experts(name: str, tmp_path: Path) -> None:
    case = experts.examined(name, zoo.text_models()[name], tmp_path)
    assert case.passed, case.detail


def test_mixtral_8x7b_is_planned_in_a_quarter_of_what_transformers_needs() -> None:
    sizes = experts.planned()
    assert sizes["mixtral 8x7b in GB"] < 25
    assert sizes["mixtral 8x7b in GB, experts in 16 bits"] > 90


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="measured through /proc")
def test_loading_experts_takes_their_4_bit_size_and_one_tensor() -> None:
    assert experts.loading()["loading, peak in MiB"] < 220
