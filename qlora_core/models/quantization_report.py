"""What of a loaded model is 4-bit, what is not, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn.modules.conv import _ConvNd

from qlora_core.errors import CheckFailed
from qlora_core.facts.architecture import Architecture
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.names import hits
from qlora_core.models.on_access import state_of
from qlora_core.models.quantization import (
    convertible,
    is_within,
    kept_paths,
    library_skips,
    output_head,
)

MISSED = "linear layers left out"
ON_ACCESS = "dequantized on access"
STACKS = "expert stacks"


@dataclass(frozen=True)
class Share:
    """A part of a model: how many weight tensors, how many weights, how many bytes in memory."""

    tensors: int = 0
    weights: int = 0
    bytes: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(
            self.tensors + other.tensors, self.weights + other.weights, self.bytes + other.bytes
        )


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What is 4-bit in a loaded model and what is not, by reason."""

    method: str | None
    """``nf4`` or ``fp4``; None where nothing is quantized."""
    quantized: Share
    unquantized: Mapping[str, Share]
    """Reason -> share: head, embedding, norms and biases, kept by the family, ..."""
    missed: tuple[str, ...] = ()
    """Linear layers that could be 4-bit, are not, and that nobody asked to keep."""

    @property
    def total(self) -> Share:
        """The whole model."""
        return sum(self.unquantized.values(), self.quantized)

    @property
    def fraction(self) -> float:
        """The share of the model's weights that are 4-bit, from 0 to 1."""
        return self.quantized.weights / max(self.total.weights, 1)

    def summary(self) -> str:
        """One line for people."""
        rest = sorted(self.unquantized.items(), key=lambda item: -item[1].bytes)
        kept = ", ".join(f"{reason} {binary_size(share.bytes)}" for reason, share in rest)
        if self.method is None:
            return f"not quantized: {binary_size(self.total.bytes)} ({kept})"
        return (
            f"{self.method.upper()}: {self.fraction:.1%} of {self.total.weights:,} weights "
            f"({self.quantized.tensors} tensors, {binary_size(self.quantized.bytes)}); "
            f"not 4-bit: {kept}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as ``run.json`` records them."""
        return {
            "method": self.method,
            "fraction": self.fraction,
            "bytes": self.total.bytes,
            "quantized": asdict(self.quantized),
            "unquantized": {reason: asdict(share) for reason, share in self.unquantized.items()},
            "missed": list(self.missed),
        }

    def require_complete(self) -> None:
        """Raise CheckFailed, naming them, where linear layers were left in 16 bits unasked."""
        if self.method is not None and self.missed:
            names = ", ".join(self.missed[:6]) + (", ..." if len(self.missed) > 6 else "")
            raise CheckFailed(
                f"{len(self.missed)} linear layers should be 4-bit and are not: {names}",
                "name them in the family's `keep_unquantized` if that is meant; else report it",
            )


def count_quantized(
    model: nn.Module, architecture: Architecture | None = None
) -> QuantizationReport:
    """Count what is 4-bit in ``model`` and what is not, each weight once, by reason."""
    method, quantized, missed = None, Share(), []
    unquantized: dict[str, Share] = {}
    reasons = _Reasons(model, architecture)
    for path, module, name, parameter in parameters_once(model):
        state = quant_state(module, name)
        if state is not None:
            method = str(state.quant_type)
            quantized += Share(1, state.shape.numel(), _bytes(parameter) + _state_bytes(state))
            continue
        reason = reasons.of(path, module, name, parameter)
        if reason == MISSED:
            missed.append(path)
        share = Share(1, parameter.numel(), _bytes(parameter))
        unquantized[reason] = unquantized.get(reason, Share()) + share
    return QuantizationReport(
        method=method, quantized=quantized, unquantized=unquantized, missed=tuple(missed)
    )


def quant_state(module: nn.Module, name: str) -> Any:
    """The state that bitsandbytes keeps for a 4-bit parameter, None for any other.

    ``name`` is its own name in ``module`` (``weight``, or ``packed`` of an expert stack).
    """
    if isinstance(module, Linear4bit) and name == "weight":
        return module.weight.quant_state
    if name == "original":
        return state_of(module)
    if isinstance(module, ExpertStack) and name == "packed":
        return module.state
    return None


class _Reasons:
    """Why a parameter is not 4-bit."""

    def __init__(self, model: nn.Module, architecture: Architecture | None) -> None:
        self.head = output_head(model)
        self.kept = dict(architecture.targets.keep_unquantized) if architecture else {}
        self.read = architecture.targets.dequantize_on_access if architecture else ()
        self.experts = architecture.targets.experts if architecture else ()
        settings = getattr(getattr(model, "config", None), "quantization_config", None)
        self.checkpoint = kept_paths(model, getattr(settings, "llm_int8_skip_modules", None) or [])
        tied = hasattr(model, "all_tied_weights_keys")
        self.library = kept_paths(model, library_skips(model)) if tied else set()

    def of(self, path: str, module: nn.Module, name: str, parameter: nn.Parameter) -> str:
        if "lora_" in path:
            return "adapters"
        if module is self.head:
            return "head"
        if isinstance(module, nn.Embedding):
            return "embeddings"
        if parameter.ndim < 2:
            return "norms and biases"
        if hits([path, f"{path}.{name}"], self.read) and path not in self.library:
            return ON_ACCESS
        if is_within(path, self.kept):
            return "kept by the family"
        if path in self.library:
            return "kept by transformers (tied or float32)"
        if path in self.checkpoint:
            return "kept by the checkpoint"
        if isinstance(module, _ConvNd):
            return "convolutions"
        if convertible(module):
            return MISSED
        if isinstance(module, nn.Linear):
            return f"not convertible ({type(module).__name__})"
        if is_within(f"{path}.{name}", (*self.experts, "experts")):
            return STACKS
        return "other parameters"


def parameters_once(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(module path, module, parameter's name in it, parameter), each parameter once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield path, module, name, parameter


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_bytes(state: Any) -> int:
    """Block scales, and with double quantization the scales of the scales."""
    inner = state.state2.absmax if state.nested else None
    return _bytes(state.absmax) + (_bytes(inner) if inner is not None else 0)


def binary_size(count: float) -> str:
    """``count`` bytes in binary units: 1.5 GiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"
