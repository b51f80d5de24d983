"""Experts that a checkpoint keeps one by one, quantized without being put together in 16 bits.

transformers stacks them, and lays two stacks side by side, before a quantizer sees them: twice
the memory of a layer's largest tensor. Its steps are replaced by one that only notes the order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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
