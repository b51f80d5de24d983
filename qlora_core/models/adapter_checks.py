"""Which adapters a model carries, whether they are those asked for, and whether they learn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_core.errors import CheckFailed
from qlora_core.facts.architecture import Architecture
from qlora_core.models.expert_adapters import expert_layers
from qlora_core.models.peft_keys import lost_in_plain_peft
from qlora_core.models.peft_names import adaptable
from qlora_core.models.quantization_report import quant_state
from qlora_core.models.selection import Selection, role_of
from qlora_core.registry.detect import detect

log = logging.getLogger("qlora-core")


def verify(model: nn.Module, selection: Selection) -> None:
    """Raise CheckFailed unless exactly the selected layers carry trainable float32 adapters."""
    found = {_base_path(path) for path, layer in _adapted(model) if not _on_parameter(layer)}
    missing, extra = set(selection.modules) - found, found - set(selection.modules)
    for what, paths in (("carry no adapter", missing), ("carry an adapter unasked", extra)):
        if paths:
            raise CheckFailed(
                f"{len(paths)} layers {what}: {', '.join(sorted(paths)[:4])}",
                f"PEFT {peft.__version__} took the targets otherwise; name layers with --targets",
            )
    stacks = sum(_on_parameter(layer) for _, layer in _adapted(model))
    if stacks != len(selection.parameters):
        raise CheckFailed(
            f"{stacks} of {len(selection.parameters)} expert parameters carry an adapter",
            "use --targets all",
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != ("lora_" in name):
            state = "is trained" if parameter.requires_grad else "is frozen"
            raise CheckFailed(f"{name} {state} and should not be", "report this with the model")


def adapter_report(model: Any, architecture: Architecture | None = None) -> dict[str, Any]:
    """What was adapted, by role, and what was not.

    ``{"rank", "alpha", "dropout", "rslora", "dora", "modules", "parameters", "fraction",
    "by_role": {role: {"modules", "parameters", "names"}}, "not_adapted": {name: modules},
    "lost_in_plain_peft": [path]}``; the last are layers that plain PEFT renames at reload;
    ``fraction`` is the share of trainable parameters among all weights of the model.
    """
    architecture = detect(model).architecture if architecture is None else architecture
    config = model.peft_config["default"]
    by_role: dict[str, dict[str, Any]] = {}
    for path, layer in _adapted(model):
        role = "experts" if _on_parameter(layer) else role_of(_base_path(path), architecture)
        entry = by_role.setdefault(role, {"modules": 0, "parameters": 0, "names": []})
        entry["modules"] += 1
        entry["parameters"] += sum(p.numel() for p in _own_adapters(layer))
        name = path.rpartition(".")[2]
        entry["names"] = sorted({*entry["names"], name})
    parameters = sum(entry["parameters"] for entry in by_role.values())
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": _dropout(model),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
        "modules": sum(entry["modules"] for entry in by_role.values()),
        "parameters": parameters,
        "fraction": parameters / _weights(model),
        "by_role": by_role,
        "not_adapted": _not_adapted(model),
        "lost_in_plain_peft": lost_in_plain_peft(model),
    }


def check_gradients(model: nn.Module) -> None:
    """Raise CheckFailed, naming them, for adapters that the first step did not reach.

    To be called once, after the backward pass of the first step and before its gradients are
    cleared. Only ``lora_B`` tells: it starts at zero, so ``lora_A`` has no gradient yet.
    With float16, call it after a step whose gradients did not overflow.

    Of an expert stack at least one expert must have learned; how many saw no token, and how many
    saw only tokens that teach nothing (in the last layers: those of prompts), is logged.
    """
    dead = []
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in path:
            gradient = parameter.grad
            if gradient is None or not bool(torch.isfinite(gradient).all() & gradient.any()):
                dead.append(_base_path(path.partition(".lora_B")[0]))
    if dead:
        raise CheckFailed(
            f"{len(dead)} adapters got no usable gradient in the first step: "
            + ", ".join(dead[:4])
            + (", ..." if len(dead) > 4 else ""),
            "leave them out with --targets; layers that a text never passes cannot learn",
        )
    counts = [layer.count() for _, layer in expert_layers(model)]
    if counts:
        experts, used, learned = map(sum, zip(*counts, strict=True))
        log.info("of %d experts %d saw a token, %d of them learned", experts, used, learned)


def _dropout(model: nn.Module) -> float:
    rates = (part.p for _, layer in _adapted(model) for part in layer.lora_dropout.values()
             if isinstance(part, nn.Dropout))  # fmt: skip
    return max(rates, default=0.0)


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def _on_parameter(layer: LoraLayer) -> bool:
    """Whether the adapter stands on a parameter (an expert stack), not on a module."""
    return hasattr(layer, "parameter_name")


def _own_adapters(layer: Any) -> Iterator[nn.Parameter]:
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad and not name.startswith("base_layer."):
            yield parameter


def _base_path(path: str) -> str:
    return path.removeprefix("base_model.model.")


def _weights(model: nn.Module) -> int:
    """All weights, 4-bit ones counted as what they stand for."""
    total, seen = 0, set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                state = quant_state(module, name)
                total += parameter.numel() if state is None else state.shape.numel()
    return total


def _not_adapted(model: nn.Module) -> dict[str, int]:
    """Names of linear layers without an adapter -> how many (the head among them)."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        inside = ".base_layer" in path or ".lora_" in path
        if adaptable(module) and not inside and not isinstance(module, LoraLayer):
            leaf = path.rpartition(".")[2]
            found[leaf] = found.get(leaf, 0) + 1
    return found
