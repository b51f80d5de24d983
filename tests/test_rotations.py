"""Rotary frequencies after loading: those that the model is built with, whatever lay in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from qlora_core.models.loader import load_model
from qlora_core.models.rotations import set_rotations
from qlora_core.models.skeleton import build_skeleton


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3", "phi", "recurrent_gemma"])
def test_frequencies_that_are_not_as_built_are_set_and_told(family: str) -> None:
    model = build_skeleton(tiny.family(family).example, device="cpu")
    as_built = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert set_rotations(model) == []
    wrong = [(name, buffer) for name, buffer in model.named_buffers() if "inv_freq" in name]
    for _, buffer in wrong:
        buffer.fill_(float("nan"))
    assert set_rotations(model) == [name for name, _ in wrong] != []
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, as_built[name])


@pytest.mark.parametrize("family", ["llama", "recurrent_gemma"])
def test_a_loaded_model_has_the_frequencies_that_it_is_built_with(
    family: str, tmp_path: Path
) -> None:
    """RecurrentGemma of transformers 5.0 comes out of loading with whatever lay in memory."""
    model = build_skeleton(tiny.family(family).example, device="cpu")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_model(tmp_path, compute_dtype=torch.float32, device="cpu").model
    expected = {n: b for n, b in model.named_buffers() if "inv_freq" in n}
    found = {n: b for n, b in loaded.named_buffers() if "inv_freq" in n}
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
