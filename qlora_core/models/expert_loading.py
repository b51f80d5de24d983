"""From the tensors of a checkpoint to 4-bit expert stacks, without a stack in 16 bits.

Experts that a checkpoint keeps one by one are stacked by transformers, and two stacks laid side
by side, before a quantizer sees them: twice the memory of a layer's largest tensor. Its steps
are replaced by one that only notes the order. A 4-bit folder keeps packed bytes and their state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)

from qlora_core.kernels.nf4 import BLOCK


@dataclass(frozen=True)
class Parts:
    """The pieces of a stack (experts, rows, columns), in the order in which it holds them."""

    pieces: list[torch.Tensor]
    shape: torch.Size


class InParts(ConversionOps):  # type: ignore[misc]  # transformers ships no types
    """In place of merging the experts, and of laying gate beside up: the list of them."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, list[torch.Tensor]], source_patterns: list[str],
        target_patterns: list[str], **_: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """(rows, columns) of every expert under each source -> ``Parts``, or a stack."""
        lists = [input_dict.pop(name) for name in source_patterns if name in input_dict]
        pieces = [piece for expert in zip(*lists, strict=True) for piece in expert]
        rows = sum(pieces[number].shape[0] for number in range(len(lists)))
        shape = torch.Size([len(lists[0]), rows, *pieces[0].shape[1:]])
        whole = all(piece.numel() % BLOCK == 0 for piece in pieces)
        value = Parts(pieces, shape) if whole else torch.cat(pieces).view(shape)
        return {target_patterns[0]: value}


def in_parts(converter: Any, is_packed: Callable[[str], bool]) -> Any:
    """``converter``, or one that hands a stack of experts on in parts.

    ``is_packed`` tells of a target's name whether all such parameters become 4-bit stacks.
    """
    steps = [(type(step), step.dim) for step in getattr(converter, "operations", ())
             if isinstance(step, MergeModulelist | Concatenate)]  # fmt: skip
    known = steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
    if not isinstance(converter, WeightConverter) or len(steps) != len(converter.operations):
        return converter
    sources, targets = converter._original_source_patterns, converter._original_target_patterns
    if not known or len(targets) != 1 or not is_packed(targets[0]):
        return converter
    return converter.copy(sources, targets, operations=[InParts()])


PACKED = "packed"
STATE = (
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
)  # fmt: skip
"""What bitsandbytes keeps beside packed bytes, by its own names."""


def stored(name: str, packed: torch.Tensor, state: QuantState) -> dict[str, torch.Tensor]:
    """A 4-bit parameter called ``name`` as tensors of a folder, for ``unpacking`` to find."""
    parts = state.as_dict(packed=True)
    return {f"{name}.{PACKED}": packed, **{f"{name}.{PACKED}.{k}": v for k, v in parts.items()}}


def unpacking(name: str, quantizer: Any) -> WeightConverter:
    """The way from ``stored`` tensors to a parameter that carries its state."""
    names = {PACKED: PACKED} | {f"{PACKED}.{part}": part for part in STATE}
    parts = {rf"{re.escape(name)}\.{re.escape(own)}$": part for own, part in names.items()}
    return WeightConverter(list(parts), name, operations=[_Unpack(quantizer, name, parts)])


class _Unpack(ConversionOps):  # type: ignore[misc]  # transformers ships no types
    """Collects one parameter's bytes and state, by the patterns that found them."""

    def __init__(self, quantizer: Any, name: str, parts: Mapping[str, str]) -> None:
        self.hf_quantizer, self.name, self.parts = quantizer, name, parts

    def convert(self, input_dict: dict[str, list[torch.Tensor]], **_: Any) -> dict[str, Any]:
        found = {self.parts[pattern]: tensors[0] for pattern, tensors in input_dict.items()}
        packed = found.pop(PACKED)
        state = QuantState.from_dict(found, device=packed.device)
        return {self.name: carrying(packed, state)}


def carrying(packed: torch.Tensor, state: QuantState) -> nn.Parameter:
    """A parameter that remembers its state until its module knows what to do with it."""
    parameter = nn.Parameter(packed, requires_grad=False)
    parameter.expert_state = state  # type: ignore[attr-defined]  # read once loading is over
    return parameter
