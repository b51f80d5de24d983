"""The loop: the same numbers however a group is cut, and nothing that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_core.errors import CheckFailed, TrainingStopped
from qlora_core.models.adapter_checks import check_gradients
from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import installed
from qlora_core.testing.cases import require_class
from qlora_core.training.batches import Batches, Group
from qlora_core.training.evaluate import evaluate
from qlora_core.training.loop import Loop, accumulate
from qlora_core.training.losses import summed_loss
from qlora_core.training.optimizers import build_schedule
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip


def tiny(dropout: float = 0.0) -> peft.PeftModel:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    return peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**SMALL)), config)


def rows(count: int = 20) -> list[dict]:
    random = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        length = 6 + int(torch.randint(12, (), generator=random))
        ids = torch.randint(3, 256, (length,), generator=random).tolist()
        cut = length // 2
        labels = [-100] * cut + ids[cut:]
        made.append({"input_ids": ids, "labels": labels, "source": ("rows", number)})
    return made


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(s["input_ids"]) for s in samples)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([s[key] + [fill] * (width - len(s[key])) for s in samples])

    ids = padded("input_ids", 0)
    mask = torch.tensor([[i < len(s["input_ids"]) for i in range(width)] for s in samples]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", -100)}


def batches(size: int = 2, accumulation: int = 2) -> Batches:
    return Batches(
        samples=rows(), collate=collate, batch_size=size, accumulation=accumulation, seed=7
    )


def loop_over(
    model: peft.PeftModel, dtype: torch.dtype = torch.float32, rate: float = 1e-2
) -> Loop:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = build_schedule(optimizer, name="constant", warmup=0.0, total=100)
    return Loop(
        model=model, optimizer=optimizer, schedule=schedule, precision=Precision(CPU, dtype),
        seed=7, check=check_gradients,
    )  # fmt: skip


def adapters(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("cut", [(2, 2), (1, 4)])
def test_cutting_a_group_otherwise_trains_the_same_adapters(cut: tuple[int, int]) -> None:
    results = []
    for size, accumulation in ((4, 1), cut):
        model = tiny()
        list(loop_over(model).steps(batches(size, accumulation).groups(1, 4)))
        results.append(adapters(model))
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, atol=1e-6, rtol=0, msg=name)


def test_the_loss_of_a_step_is_the_mean_over_its_learned_tokens() -> None:
    model = tiny()
    group = next(batches().groups(1, 1))
    step = next(loop_over(model).steps([group]))
    fresh = tiny().eval()
    total = count = 0
    for batch in group.batches:
        logits = fresh(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row in range(len(logits)):
            for place in range(logits.shape[1] - 1):
                answer = int(batch["labels"][row, place + 1])
                if answer != -100:
                    total -= float(logits[row, place].detach().log_softmax(-1)[answer])
                    count += 1
    assert step.learned_tokens == count
    assert step.loss == pytest.approx(total / count, rel=1e-5)
    assert step.tokens == sum(int(b["attention_mask"].sum()) for b in group.batches)


def test_no_learned_position_is_lost_where_the_head_runs_on_some_only() -> None:
    model = tiny().eval()
    batch = collate(rows(5))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 256), batch["labels"][:, 1:].reshape(-1), reduction="sum"
    )
    torch.testing.assert_close(summed_loss(model, batch), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", sorted(installed().architectures))
def test_the_loss_is_each_familys_own(family: str) -> None:
    example = installed().architectures[family].example
    require_class(installed().architectures[family], example["model_type"])
    torch.manual_seed(0)
    model = build_skeleton(example, device="cpu")
    model.config.use_cache = False
    embeddings = model.get_input_embeddings()
    if not hasattr(embeddings, "num_embeddings"):
        pytest.skip(f"{family} reads codes of sound, several rows for each sample")
    vocabulary = embeddings.num_embeddings
    samples = [
        {
            key: [i if i < 0 else i % vocabulary for i in row[key]][-16:]  # one family takes 16
            for key in ("input_ids", "labels")
        }
        for row in rows(3)
    ]
    batch = collate(samples)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
            batch["labels"][:, 1:].reshape(-1), reduction="sum",
        )  # fmt: skip
        torch.testing.assert_close(summed_loss(model, batch), expected, rtol=1e-5, atol=1e-3)


def test_a_model_that_also_sees_images_is_told_that_all_is_text() -> None:
    torch.manual_seed(0)
    model = build_skeleton(installed().architectures["gemma3"].example, device="cpu").train()
    loss = summed_loss(model, collate(rows(3)))  # transformers 5.0 refuses to train without
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_compute_trains_float32_adapters(dtype: torch.dtype) -> None:
    model = tiny()
    steps = list(loop_over(model, dtype).steps(batches().groups(1, 20)))
    assert not any(step.skipped for step in steps)
    assert steps[-1].loss < steps[0].loss
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}


def test_float16_lowers_its_scale_instead_of_losing_the_step() -> None:
    model = tiny()
    loop = loop_over(model, torch.float16)
    loop.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    steps = list(loop.steps(batches().groups(1, 3)))
    assert not any(step.skipped for step in steps)
    assert loop.precision.scaler.get_scale() < 2.0**40


def poisoned(bad: set[int], value: float):
    """``accumulate``, with one gradient element spoilt at the steps ``bad``."""

    def gradients(model, group: Group, learned, precision):
        loss = accumulate(model, group, learned, precision)
        if group.step in bad:
            next(p for p in model.parameters() if p.grad is not None).grad[0, 0] = value
        return loss

    return gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_touches_no_weight(dtype: torch.dtype, value: float) -> None:
    model = tiny()
    loop = loop_over(model, dtype)
    loop.gradients = poisoned({3}, value)
    before = None
    for step in loop.steps(batches().groups(1, 5)):
        if step.step == 2:
            before = adapters(model)
        elif step.step == 3:
            assert step.skipped
            assert all(torch.equal(before[n], p) for n, p in adapters(model).items())
        else:
            assert not step.skipped
    assert all(bool(torch.isfinite(p).all()) for p in adapters(model).values())


def test_a_skipped_step_is_valid_json_and_says_so() -> None:
    loop = loop_over(tiny())
    loop.gradients = poisoned({1}, math.nan)
    line = next(loop.steps(batches().groups(1, 1))).to_dict()
    assert line["skipped"] is True
    assert line["gradient_norm"] is None


def test_three_such_steps_in_a_row_end_the_run() -> None:
    loop = loop_over(tiny())
    loop.gradients = poisoned({2, 4, 5, 6}, math.nan)
    steps = loop.steps(batches().groups(1, 9))
    assert [next(steps).skipped for _ in range(6)] == [False, True, False, True, True, True]
    with pytest.raises(TrainingStopped, match="step 6"):
        next(steps)


def test_a_group_without_anything_to_learn_is_refused() -> None:
    empty = {"input_ids": [1, 2, 3], "labels": [-100] * 3}
    groups = Batches(samples=[empty], collate=collate, batch_size=1, accumulation=1, seed=0)
    with pytest.raises(TrainingStopped, match="no token to learn"):
        next(loop_over(tiny()).steps(groups.groups(1, 1)))


def test_an_adapter_without_a_gradient_is_caught_at_the_first_step() -> None:
    model = tiny()
    for name, parameter in model.named_parameters():
        if "layers.1.mlp" in name and "lora_A" in name:
            parameter.data.zero_()
    with pytest.raises(CheckFailed, match="down_proj"):
        list(loop_over(model).steps(batches().groups(1, 1)))


def test_an_optimizer_of_other_tensors_is_caught_by_the_second_step() -> None:
    model = tiny()
    loop = loop_over(model)
    group = loop.optimizer.param_groups[0]  # what re-materialised parameters come down to
    group["params"] = [torch.nn.Parameter(torch.zeros_like(p)) for p in group["params"]]
    with pytest.raises(CheckFailed, match="did not move"):
        list(loop.steps(batches().groups(1, 2)))


def test_a_model_without_adapters_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).requires_grad_(False)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(CheckFailed, match="nothing is trainable"):
        Loop(
            model=model, optimizer=optimizer, precision=Precision(CPU),
            schedule=build_schedule(optimizer, name="linear", warmup=0, total=3),
        )  # fmt: skip


def test_dropout_depends_on_the_step_alone() -> None:
    whole, parts = tiny(dropout=0.3), tiny(dropout=0.3)
    list(loop_over(whole).steps(batches().groups(1, 4)))
    loop = loop_over(parts)
    list(loop.steps(batches().groups(1, 2)))
    torch.rand(17)  # somebody draws numbers in between
    list(loop.steps(batches().groups(3, 4)))
    assert all(torch.equal(p, adapters(parts)[n]) for n, p in adapters(whole).items())


def test_every_epoch_sees_every_sample_once_in_another_order() -> None:
    plan = batches(2, 3)
    assert plan.steps_per_epoch == 4  # 20 samples: three groups of 6 and one of 2
    first = [i for g in plan.groups(1, 4) for i in g.indices]
    second = [i for g in plan.groups(5, 8) for i in g.indices]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert [g.indices for g in plan.groups(3, 6)] == [g.indices for g in plan.groups(1, 8)][2:6]


def test_processes_share_a_group_without_overlap() -> None:
    whole = next(batches(2, 4).groups(1, 1))
    shares = [
        next(Batches(samples=rows(), collate=collate, batch_size=2, accumulation=2, seed=7,
                     rank=rank, processes=2).groups(1, 1))
        for rank in range(2)
    ]  # fmt: skip
    assert shares[0].indices == shares[1].indices == whole.indices
    lengths = [len(share.batches) for share in shares]
    assert lengths == [2, 2]
    seen = [tuple(r.tolist()) for s in shares for b in s.batches for r in b["input_ids"]]
    assert len(seen) == len(whole.indices)


def test_evaluation_weights_every_learned_token_alike() -> None:
    model = tiny()
    found = [
        evaluate(model, rows(7), collate, batch_size=size, precision=Precision(CPU),
                 processes=Processes(cpu=True))
        for size in (1, 3, 7)
    ]  # fmt: skip
    assert len({result.tokens for result in found}) == 1
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
    assert found[0].loss == pytest.approx(found[2].loss, rel=1e-5)
    assert model.training
    packed = evaluate(model, rows(7), collate, batch_size=7, precision=Precision(CPU),
                      processes=Processes(cpu=True), pack_tokens=1)  # fmt: skip
    assert (packed.loss, packed.tokens) == (pytest.approx(found[0].loss, rel=1e-5), found[0].tokens)


def test_evaluation_holds_no_more_tokens_at_once_than_a_pack_may_have() -> None:
    held = []

    def noting(cut: list[Any]) -> Any:
        held.append(sum(len(sample["input_ids"]) for sample in cut))
        return collate(cut)

    longest = max(len(r["input_ids"]) for r in rows(12))
    for budget in (longest, 2 * longest):
        held.clear()
        evaluate(tiny(), rows(12), noting, batch_size=12, precision=Precision(CPU),
                 processes=Processes(cpu=True), pack_tokens=budget)  # fmt: skip
        assert max(held) <= budget


def test_evaluation_holds_no_logits_of_all_samples() -> None:
    model = tiny()
    largest = 0

    def watch(module, arguments, output) -> Iterator[None] | None:
        nonlocal largest
        largest = max(largest, output.numel())

    model.get_base_model().lm_head.register_forward_hook(watch)
    evaluate(model, rows(12), collate, batch_size=2, precision=Precision(CPU),
             processes=Processes(cpu=True))  # fmt: skip
    longest = max(len(r["input_ids"]) for r in rows(12))
    assert 0 < largest <= 2 * longest * 256


@pytest.mark.parametrize(("name", "rates"), [
    ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
    ("cosine", [0.0, 0.5, 1.0, 0.8535534, 0.5, 0.1464466]),
])  # fmt: skip
def test_schedules_rise_and_fall(name: str, rates: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, name=name, warmup=2, total=6)
    seen = []
    for _ in rates:
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates)


def test_the_padding_that_is_announced_is_that_of_the_batches() -> None:
    samples = rows(11)
    batches = Batches(samples=samples, collate=collate, batch_size=2, accumulation=2, seed=3)
    first_epoch = [b for g in batches.groups(1, batches.steps_per_epoch) for b in g.batches]
    positions = sum(b["input_ids"].numel() for b in first_epoch)
    real = sum(int(b["attention_mask"].sum()) for b in first_epoch)
    assert batches.padding() == pytest.approx(1 - real / positions)
