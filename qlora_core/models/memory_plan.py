"""A plan of memory, term by term: the value that is shown, recorded and held against a peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_core.models.quantization_report import binary_size

FOUR_BIT = "base weights in 4 bits"
REST = "base weights in 16 bits"
ADAPTERS = "adapters"
OPTIMIZER = "gradients and optimizer"
ACTIVATIONS = "activations between layers"
LAYER = "work of one layer"
HEAD = "head and loss"
CONTEXT = "buffers and context"


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Planned bytes by term. ``total`` counts the larger of the two moments, not both."""

    terms: Mapping[str, int]
    gradient_checkpointing: bool
    tokens: int
    """Of one micro-batch: padding included where there is any."""
    road: str = ""
    """In words, what the plan supposes about how a step computes."""
    if_refused: int | None = None
    """The total where a probe refuses all of that; None where that is known already."""
    wasted: float = 0.0
    """Bytes of allocators' waste, in the last term, for each byte of activations."""

    @property
    def total(self) -> int:
        """Planned peak in bytes."""
        smaller = min(self.terms[LAYER], self.terms[HEAD])
        return sum(self.terms.values()) - smaller

    def keeping(self, activations: float) -> MemoryPlan:
        """The same with other ``activations`` between layers, in bytes."""
        more = activations - self.terms[ACTIVATIONS]
        terms = dict(self.terms) | {ACTIVATIONS: round(activations)}
        terms[CONTEXT] += round(self.wasted * more)
        return dataclasses.replace(self, terms=terms)

    def room(self, limit: float) -> float:
        """Bytes of activations between layers with which the total is ``limit``."""
        return self.terms[ACTIVATIONS] + (limit - self.total) / (1 + self.wasted)

    def table(self) -> str:
        """The terms, one a line, in binary units. What is in brackets does not add up."""
        smaller = LAYER if self.terms[LAYER] < self.terms[HEAD] else HEAD
        rows = []
        for name, size in self.terms.items():
            shown = f"({binary_size(size)})" if name == smaller else binary_size(size)
            rows.append(f"  {name:<28}{shown:>12}")
        note = f"  ({smaller}: at another moment than {LAYER if smaller == HEAD else HEAD})"
        peak = f"  {'peak':<28}{binary_size(self.total):>12}"
        return "\n".join([*rows, peak, note, *self._road_lines()])

    def _road_lines(self) -> list[str]:
        if not self.road:
            return []
        if self.if_refused is None:
            return [f"  planned for {self.road}"]
        most = binary_size(self.if_refused)
        return [f"  planned for {self.road}", f"  where the model refuses that: up to {most}"]

    def to_dict(self) -> dict[str, Any]:
        """As ``run.json`` records it."""
        return {
            "planned": dict(self.terms),
            "planned_total_bytes": self.total,
            "planned_for": self.road,
        }
