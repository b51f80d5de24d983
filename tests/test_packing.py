"""Packed samples: what each gives alone, or padding."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from test_head import FAMILIES, adapted, batch, build, gradients
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
)

from qlora_core.kernels import packing
from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.kernels.row_mask import RowMask, computing, row_mask
from qlora_core.training.losses import summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import choose_road, packed_loss
from qlora_core.training.runs import Run, new_record

ISOLATING = [name for name in FAMILIES if name != "falcon"]


def ready(model: peft.PeftModel) -> Any:
    parts = find_head(model, nullcontext)
    packing.prepare(model.get_base_model(), parts, nullcontext)
    return packed_loss(parts)


@pytest.mark.parametrize("name", ISOLATING)
def test_packed_samples_give_the_loss_and_the_gradient_of_padded_ones(name: str) -> None:
    model = build(name)
    own = summed_loss(model, batch())
    expected = gradients(model, own)
    loss = ready(model)(model, batch())
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradients(model, loss), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ISOLATING)
def test_every_sample_of_a_pack_is_as_it_is_alone(name: str) -> None:
    model = build(name).eval()
    parts = find_head(model, nullcontext)
    packing.prepare(model.get_base_model(), parts, nullcontext)
    rows = batch()
    ids, mask = rows["input_ids"], rows["attention_mask"]
    with torch.no_grad():
        packed = packing.packed_states(parts.decoder, ids, mask)
        alone = [
            packing.packed_states(parts.decoder, ids[i : i + 1], mask[i : i + 1]) for i in range(3)
        ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text"])
def test_a_sliding_window_shorter_than_the_samples_is_kept(name: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**FAMILIES[name], "sliding_window": 4})
    model = adapted(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    own = summed_loss(model, batch())
    expected = gradients(model, own)
    loss = ready(model)(model, batch())
    torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradients(model, loss), expected, rtol=1e-3, atol=1e-3)


class Largest(TorchDispatchMode):
    """Keeps how many values the largest tensor has that is made meanwhile."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.values = max(self.values, made.untyped_storage().size() // made.itemsize)
        return made


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_no_mask_of_a_whole_row_is_ever_made(name: str) -> None:
    model = build(name)
    loss = ready(model)
    ids = torch.randint(3, 307, (40, 20), generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with Largest() as packed:
        gradients(model, loss(model, rows))
    logits = ids.numel() * 307
    assert packed.values <= logits < ids.numel() ** 2


def test_attention_runs_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    loss = ready(model)
    lengths = []
    plain = packing.sdpa_attention_forward

    def watched(module, query, key, value, mask, **settings):
        lengths.append(query.shape[2])
        assert mask is None
        return plain(module, query, key, value, mask, **settings)

    monkeypatch.setattr(packing, "sdpa_attention_forward", watched)
    loss(model, batch())
    assert lengths == [17, 12, 5] * 2


def test_recomputed_layers_keep_samples_apart() -> None:
    model = build("llama")
    loss = ready(model)
    expected = gradients(model, loss(model, batch()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, loss(model, batch())), expected)


def test_a_prepared_model_still_computes_padded_batches_and_generates() -> None:
    model = build("llama").eval()
    rows = batch()
    given = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    with torch.no_grad():
        before = model(**given).logits
        asked = {"max_new_tokens": 5, "do_sample": False}
        said = model.generate(rows["input_ids"][:1], **asked)
        ready(model)
        torch.testing.assert_close(model(**given).logits, before)
        assert torch.equal(model.generate(rows["input_ids"][:1], **asked), said)


ALIBI = {"bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 307}}


@pytest.mark.parametrize("name", ["bloom", "falcon", "mamba"])
def test_a_model_that_cannot_keep_samples_apart_is_padded_and_says_so(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    values = {"bloom": ALIBI["bloom"], "falcon": FAMILIES["falcon"], "mamba": {
        "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 307, "state_size": 8,
    }}[name]  # fmt: skip
    config = AutoConfig.for_model(name, **values)
    model = adapted(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    before = model.config._attn_implementation
    run = Run(tmp_path, new_record())
    loss = choose_road(run, model, Precision(torch.device("cpu")), plain=False).loss
    assert run.record["fast_path"]["batches"] == "padded"
    codes = {n["code"] for n in run.record["notices"]}
    assert codes & {"padded-batches", "plain-head"}
    assert model.config._attn_implementation == before
    torch.testing.assert_close(loss(model, batch()), summed_loss(model, batch()), rtol=1e-4, atol=0)


def test_a_decoder_that_mixes_samples_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    parts = find_head(model, nullcontext)
    plain = packing.packed_inputs

    def counted_on(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        inputs = plain(ids, mask)
        tokens = inputs["position_ids"].shape[1]
        return {"input_ids": inputs["input_ids"], "position_ids": torch.arange(tokens)[None]}

    monkeypatch.setattr(packing, "packed_inputs", counted_on)
    with pytest.raises(Unfit, match="see each other"):
        packing.prepare(model.get_base_model(), parts, nullcontext)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "falcon"])
def test_on_a_gpu_samples_are_packed_by_the_same_probe_and_layers_stay_their_own(
    name: str, tmp_path: Path
) -> None:
    """The choice alone: that the device is one is said here, and the computing is the CPU's."""
    model = build(name)
    run = Run(tmp_path, new_record())
    road = choose_road(run, model, Precision(torch.device("cuda")), plain=False)
    taken = run.record["fast_path"]
    assert road.packed == (name != "falcon") == (taken["batches"] == "packed")
    assert road.fast is None
    assert taken["layers"] == "own"
    assert "linears" not in taken
    torch.testing.assert_close(
        road.loss(model, batch()), summed_loss(model, batch()), rtol=1e-4, atol=1e-4
    )


def test_a_model_that_writes_its_scores_out_is_not_packed(tmp_path: Path) -> None:
    """They grow with the square of a row; layers by hand write none, whatever the model does."""
    for device, packed in (("cpu", True), ("cuda", False)):
        model = build("gemma2")
        model.get_base_model().set_attn_implementation("eager")  # some releases know no other
        run = Run(tmp_path, new_record())
        road = choose_road(run, model, Precision(torch.device(device)), plain=False)
        assert road.packed == packed
        said = [n["message"] for n in run.record["notices"] if n["code"] == "padded-batches"]
        assert packed or "scores" in said[0]
        torch.testing.assert_close(
            road.loss(model, batch()), summed_loss(model, batch()), rtol=1e-4, atol=1e-4
        )


def test_a_road_goes_on_padded_where_another_process_cannot_pack(tmp_path: Path) -> None:
    model = build("llama")
    run = Run(tmp_path, new_record())
    road = choose_road(run, model, Precision(torch.device("cpu")), plain=False)
    padded = road.padded(run, "another process cannot")
    assert (padded.packed, padded.fast) == (False, None)
    assert run.record["fast_path"]["batches"] == "padded"
    torch.testing.assert_close(
        padded.loss(model, batch()), road.loss(model, batch()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("given", ["device", "cache_position"])
def test_a_mask_is_where_the_model_computes_whatever_release_asks_for_it(given: str) -> None:
    """Transformers 5.0 passes places in a tensor, later ones the device."""
    place = torch.device("meta")
    asked = {"device": place, "cache_position": torch.empty(3, device=place)}[given]
    with computing():
        mask = row_mask(batch_size=1, mask_function=lambda *_: None, **{given: asked})
    assert isinstance(mask, RowMask)
    assert mask.device == place


def test_a_probe_that_runs_out_of_memory_ends_the_run_instead_of_taking_a_road_with_more() -> None:
    model = build("llama")
    parts = find_head(model, nullcontext)

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    parts.decoder.forward = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        find_head(model, nullcontext)
    parts.decoder.forward = lambda position_ids, **_: [][0]
    with pytest.raises(Unfit, match="takes no packed samples"):
        packing.prepare(model.get_base_model(), parts, nullcontext)


@pytest.mark.parametrize("works", [True, False])
def test_kernels_for_several_lengths_come_first_where_they_are_proven(
    works: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As flash-attn's on a GPU; here one of our own takes their place, whole or broken."""

    def kernel(module: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        out, none = packing.segment_attention(module, query, *rest, **named)
        return (out if works else out.flip(1)), none

    name = f"varlen that {'works' if works else 'mixes samples'}"
    AttentionInterface.register(name, kernel)
    AttentionMaskInterface.register(name, row_mask)
    monkeypatch.setattr(packing, "varlen_kernels", lambda _: ("not installed", name))
    model = build("llama")
    run = Run(tmp_path, new_record())
    road = choose_road(run, model, Precision(torch.device("cuda")), plain=False)
    assert road.packed
    assert run.record["fast_path"]["attention"] == (name if works else "qlora_core_rows")
    torch.testing.assert_close(
        road.loss(model, batch()), summed_loss(model, batch()), rtol=1e-4, atol=1e-4
    )


def test_where_samples_begin_is_asked_of_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("mistral")
    packing.prepare(model.get_base_model(), find_head(model, nullcontext), nullcontext)
    inputs = packing.packed_inputs(batch()["input_ids"], batch()["attention_mask"])
    bounds = inputs["cu_seq_lens_q"]
    assert packing.bounds_of(bounds) == bounds.tolist() == packing.bounds_of(bounds.clone())
    read = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor) or [])
    packing.bounds_of(bounds)
    assert not read


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_keys_of_several_queries_are_repeated_where_kernels_ask_for_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a T4 (here all kernels take groups): the same loss, and no groups asked for."""
    model = build(family)
    parts = find_head(model, nullcontext)
    packing.prepare(model.get_base_model(), parts, nullcontext)
    expected = packed_loss(parts)(model, batch())
    asked = []
    usual = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        asked.append(named.get("enable_gqa", False) or query.shape[1] != key.shape[1])
        return usual(query, key, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(packing, "_takes_groups", lambda _: False)
    torch.testing.assert_close(packed_loss(parts)(model, batch()), expected)
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "takes"),
    [
        ("cpu", torch.float32, None, True),
        ("cuda", torch.float16, (7, 5), False),
        ("cuda", torch.bfloat16, (8, 0), True),
        ("cuda", torch.float32, (9, 0), False),
    ],
)
def test_groups_of_queries_go_to_the_kernels_that_take_them(
    device: str, dtype: torch.dtype, capability: Any, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    query = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert packing._takes_groups(query) is takes
