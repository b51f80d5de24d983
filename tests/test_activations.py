"""What layers keep: by the room there is, the last first, with the same gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_fast_layers import build, by_hand

from qlora_core.kernels.attention import plain_segments
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.layer import Keep, Row


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
