"""What layers keep: by the room there is, the last first, with the same gradients."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from test_fast_layers import FITTING, build, by_hand

from qlora_core.kernels.attention import plain_segments
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.layer_state import Keep, Row
from qlora_core.models.memory import plan_memory
from qlora_core.models.memory_plan import ACTIVATIONS
from qlora_core.models.step_memory import fast_way


@pytest.fixture(scope="module")
def fast() -> FastLayers:
    return by_hand(build("gemma2"))[1]


def test_without_limit_every_layer_keeps_everything(fast: FastLayers) -> None:
    assert fast.keep_within(math.inf, 100)[Keep.ALL] == 2


def test_without_room_every_layer_keeps_its_input(fast: FastLayers) -> None:
    assert fast.keep_within(0.0, 100)[Keep.INPUT] == 2


def test_what_is_kept_fits_the_room_and_the_last_layer_comes_first(fast: FastLayers) -> None:
    fast.keep_within(math.inf, 100)
    whole = fast.kept_bytes(100)
    fast.keep_within(0.0, 100)
    least = fast.kept_bytes(100)
    seen = set()
    for room in range(least, whole + 1, (whole - least) // 40):
        fast.keep_within(room, 100)
        assert least <= fast.kept_bytes(100) <= room
        first, last = (layer.keep for layer in fast.layers.values())
        assert first <= last
        seen.add((first, last))
    assert len(seen) >= 5


def test_layers_keep_no_more_than_they_say() -> None:
    """Every tensor that the forward pass leaves on the graph, counted."""
    fast = by_hand(build("llama"))[1]
    layer = next(iter(fast.layers.values()))
    x = torch.randn(30, 64)
    row = Row(plain_segments([0, 30]), torch.randn(30, 1, 16), torch.randn(30, 1, 16))
    for keep in Keep:
        layer.keep = keep
        saved = layer(x, row).grad_fn.saved  # type: ignore[union-attr]
        parts = [getattr(saved, f.name) for f in dataclasses.fields(saved)]
        tensors = [x, *(p for p in parts if isinstance(p, torch.Tensor))]
        tensors += [kept.low for kept in saved.kept.values()]
        assert sum(t.numel() for t in tensors) == 30 * layer.kept_per_token(keep)


@pytest.mark.parametrize("name", FITTING)
def test_the_plan_counts_what_layers_say_that_they_keep(name: str) -> None:
    """From the config alone, for every shape that is computed by hand."""
    model = build(name)
    fast = by_hand(model)[1]
    config = model.get_base_model().config.to_dict()
    adapted = model.peft_config["default"].target_modules
    plan = partial(
        plan_memory, config, rank=4, tokens=100, device="cpu", compute_dtype=torch.float32,
        way=fast_way("cpu"), targets=",".join(sorted(adapted)),
    )  # fmt: skip
    for room, recompute in ((math.inf, False), (0.0, True)):
        fast.keep_within(room, 100)
        planned = plan(gradient_checkpointing=recompute).terms[ACTIVATIONS]
        assert planned == fast.kept_bytes(100)
