"""The judge: what a model does with its linear layers when it reads text, found out by running it.

Independent of ``qlora_core.models.structure``. A hook on each linear layer adds a vector of
zeros to its output: the vector has a gradient exactly where an adapter beside it would learn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from exams.sweep import zoo

RAW = {
    "mamba": ("out_proj", "x_proj", "dt_proj"),
    "falcon_mamba": ("out_proj", "x_proj", "dt_proj"),
    "jamba": ("dt_proj",),
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1"), ("out_proj",)),
    "nemotron_h": ("mixer.out_proj",),
    **dict.fromkeys(("zamba2", "granitemoehybrid"), ("mamba.out_proj",)),
    "reformer": ("query_key", "value"),
    "gemma3n_text": ("correction_coefs", "prediction_coefs"),
    "longcat_flash": ("classifier",),
}  # fmt: skip
"""Type -> layers whose weight goes raw to a kernel or a function (seen by a spy on the kernels):
on a GPU, or when it answers, an adapter there is passed by, whatever a CPU does in training."""
_ROUTER = re.compile(r"^gate$|expert_gate$|router|classifier$")


@dataclass(frozen=True)
class Verdict:
    """What the run says of one linear layer."""

    path: str
    layer: str | None
    """Its decoder layer: the path up to the first number."""
    learns: bool
    """It was called, and its output has a finite, non-zero gradient."""
    barred: str = ""
    """Why it must carry no adapter all the same: head, router, raw."""

    @property
    def wanted(self) -> bool:
        """Whether a right list of targets names it."""
        return self.learns and self.layer is not None and not self.barred


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that multiplies its input by a stored matrix."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield path, module


def judge(model: Any, model_type: str) -> dict[str, Verdict]:
    """Path -> verdict on every linear layer of ``model`` (random weights, on the CPU)."""
    found = dict(linear_layers(model))
    learning = _learning(model, found)
    experts = _expert_numbers(model.config.to_dict())
    return {
        path: Verdict(
            path,
            _layer(path),
            path in learning,
            _barred(model, path, module, model_type, experts),
        )
        for path, module in found.items()
    }


def _learning(model: Any, found: dict[str, nn.Module]) -> set[str]:
    probes = {path: torch.zeros(_width(module), requires_grad=True)
              for path, module in found.items()}  # fmt: skip
    hooks = [module.register_forward_hook(_adding(probes[path])) for path, module in found.items()]
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():  # as training does it: some blocks need a gradient to pass on
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(True)
    torch.manual_seed(0)
    for seed in range(2):
        words = zoo.text(model, rows=4).roll(seed * 7)
        states: torch.Tensor = model(input_ids=words, use_cache=False, **_modes(model, words))[0]
        (states * torch.randn_like(states)).sum().backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    return {path for path, probe in probes.items() if _usable(probe.grad)}


def _modes(model: Any, words: torch.Tensor) -> dict[str, torch.Tensor]:
    """Models that also see want to know which tokens are text, in training."""
    nested = getattr(model.config, "vision_config", None) is not None
    return {"token_type_ids": torch.zeros_like(words)} if nested else {}


def _usable(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool(torch.isfinite(gradient).all() & gradient.any())


def _adding(probe: torch.Tensor) -> Any:
    def add(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
        fits = isinstance(output, torch.Tensor) and output.shape[-1:] == probe.shape
        return output + probe.to(output) if fits else output

    return add


def _width(module: Any) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


def _layer(path: str) -> str | None:
    parts = path.split(".")
    number = next((place for place, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def _barred(model: Any, path: str, module: nn.Module, model_type: str, experts: set[int]) -> str:
    if module is model.get_output_embeddings() or "lm_head" in path:
        return "head"
    if any(f".{path}".endswith(f".{name}") for name in RAW.get(model_type, ())):
        return "raw"
    *above, leaf = path.split(".")
    narrow = _width(module) in {1, *experts}
    if any(map(_ROUTER.search, above)) or "router" in leaf or (narrow and _ROUTER.search(leaf)):
        return "router"
    return ""


def _expert_numbers(config: dict[str, Any]) -> set[int]:
    nested: Iterable[Any] = (value for value in config.values() if isinstance(value, dict))
    own = {v for k, v in config.items() if "expert" in str(k) and isinstance(v, int) and v > 1}
    return own.union(*map(_expert_numbers, nested))
