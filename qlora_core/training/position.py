"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Position:
    """Where a run is. Every checkpoint carries one; resuming starts from it."""

    step: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    skipped: int = 0
    """Steps in a row without a finite gradient, up to here."""
    skipped_in_all: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    before: float | None = None
    """Evaluation loss before the first step."""
    best: float | None = None
    best_step: int | None = None
    waits: int = 0
    """Evaluations in a row without improvement."""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    """The last ones, to tell a spike."""
