"""The training loop: numbers only. No files, no printing, no hooks."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qlora_core.errors import CheckFailed, TrainingStopped
from qlora_core.models.peak_memory import peak_memory_bytes, reset_peak_memory
from qlora_core.training.batches import Group, seed_of
from qlora_core.training.losses import Loss, learned_tokens, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes

SKIPS_IN_A_ROW = 3
"""So many steps without a finite gradient, one after the other, end the run; or without any."""
Gradients = Callable[[nn.Module, Group, float, Precision], float]
"""``(model, group, learned, precision)`` adds the gradient of the group's summed loss divided by
``learned`` to every trainable parameter, scaled by ``precision``, and returns that loss.
The one seam of the loop: faster ways to the same numbers replace ``accumulate``."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step (or one that was skipped) as a record."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    """Real ones, without padding, over all processes."""
    learned_tokens: int
    seconds: float
    peak_memory_bytes: int
    indices: tuple[int, ...]
    """Which samples it saw."""
    skipped: bool = False
    """The gradient was not finite: no weight was touched."""

    def to_dict(self) -> dict[str, Any]:
        """The step's line of ``metrics.jsonl``; what is not finite is null there."""
        names = ("step", "loss", "learning_rate", "gradient_norm", "tokens", "learned_tokens",
                 "seconds", "peak_memory_bytes")  # fmt: skip
        line = {name: finite(getattr(self, name)) for name in names}
        line["tokens_per_second"] = self.tokens / self.seconds if self.seconds else None
        return line | ({"skipped": True} if self.skipped else {})


@dataclass(kw_only=True)
class Loop:
    """What one run computes with. ``steps`` yields a record per optimizer step."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    precision: Precision
    processes: Processes = field(default_factory=Processes)
    max_gradient_norm: float = 1.0
    seed: int = 0
    gradients: Gradients = field(default_factory=lambda: accumulate)
    check: Callable[[nn.Module], None] | None = None
    """Called with the gradients of the first step that has finite ones; raises CheckFailed."""
    parameters: list[nn.Parameter] = field(init=False)
    skipped: int = 0
    """Consecutive steps without a finite gradient."""
    flat: int = field(default=0, init=False)
    """Consecutive steps whose gradient was zero, though there was a loss."""
    checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise CheckFailed("nothing is trainable", "attach adapters to the model first")
        self.processes.same_start(self.parameters)

    def steps(self, groups: Iterable[Group]) -> Iterator[Step]:
        """Train on each group in turn.

        The loss is the mean over the learned tokens of the whole group over all processes: it
        does not depend on how the group was cut. A step whose gradient is not finite is skipped
        and says so. Raises TrainingStopped after the third of these in a row, or the third whose
        gradient is zero; CheckFailed when an adapter gets no gradient at the first step or has
        not moved after the second.
        """
        moved = MoveCheck(self.model, self.parameters)
        reset_peak_memory(self.precision.device)  # what loading took is not training's
        self.model.train()
        for group in groups:
            step = self._step(group)
            self.skipped = self.skipped + 1 if step.skipped else 0
            self.flat = self.flat + 1 if step.loss > 0 == step.gradient_norm else 0
            moved.after(step)
            yield step
            self._stop_where_hopeless(step)

    def _step(self, group: Group) -> Step:
        began = time.perf_counter()
        device = self.precision.device
        counts = [
            float(sum(learned_tokens(b) for b in group.batches)),
            float(sum(int(b["attention_mask"].sum()) for b in group.batches)),
        ]
        learned, tokens = self.processes.sum(counts, device)
        if not learned:
            raise TrainingStopped(
                f"step {group.step} has no token to learn (samples {_listed(group.indices)})",
                "drop rows without an answer, or look at the labels with --dry-run",
            )
        loss, norm = self._finite_gradients(group, learned)
        rate = self.schedule.get_last_lr()[0]
        skipped = not (math.isfinite(norm) and math.isfinite(loss))
        if not skipped:
            if self.check is not None and not self.checked:
                self.check(self.model)
            self.checked = True
            self._apply(norm)
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # a skipped step is no step of the optimizer
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        return Step(
            step=group.step, loss=loss, learning_rate=float(rate), gradient_norm=norm,
            tokens=int(tokens), learned_tokens=int(learned),
            seconds=time.perf_counter() - began, peak_memory_bytes=peak_memory_bytes(device),
            indices=group.indices, skipped=skipped,
        )  # fmt: skip

    def _finite_gradients(self, group: Group, learned: float) -> tuple[float, float]:
        """Loss and gradient norm; in float16 at the highest loss scale that does not overflow."""
        before = self.precision.scaler.state_dict()
        while True:
            loss, norm = self._gradients(group, learned)
            if math.isfinite(loss) and math.isfinite(norm):
                return loss, norm
            self.precision.update()  # lowers the scale, forgets the overflow
            if not math.isfinite(loss) or not self.precision.can_retry():
                self.precision.restore(before)  # the scale was not to blame
                return loss, norm

    def _gradients(self, group: Group, learned: float) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        set_seed(seed_of(self.seed, "step", group.step, self.processes.rank))
        loss = self.gradients(self.model, group, learned, self.precision)
        (loss,) = self.processes.sum([loss], self.precision.device)
        self.processes.sum_gradients(self.parameters)
        self.precision.unscale(self.optimizer)
        present = [p.grad for p in self.parameters if p.grad is not None]
        return loss, float(torch.nn.utils.get_total_norm(present))

    def _apply(self, norm: float) -> None:
        if self.max_gradient_norm and norm > self.max_gradient_norm:
            total = torch.tensor(norm, device=self.precision.device)
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_gradient_norm, total)
        self.optimizer.step()
        self.precision.update()

    def _stop_where_hopeless(self, step: Step) -> None:
        place = f"up to step {step.step} (samples {_listed(step.indices)})"
        if self.skipped >= SKIPS_IN_A_ROW:
            raise TrainingStopped(
                f"no finite gradient in {self.skipped} steps in a row, {place}",
                "lower the learning rate, or train in bfloat16 or float32 (compute_dtype)",
            )
        if self.flat >= SKIPS_IN_A_ROW:
            raise TrainingStopped(
                f"a gradient of zero in {self.flat} steps in a row, at a loss of {step.loss:.3f}, "
                f"{place}: nothing is learned any more",
                "lower the learning rate: the adapters have grown past what the model can use",
            )


def accumulate(
    model: nn.Module,
    group: Group,
    learned: float,
    precision: Precision,
    loss: Loss = summed_loss,
) -> float:
    """Micro-batch by micro-batch through ``loss``, else the model's own forward: ``Gradients``."""
    total = 0.0
    for batch in group.batches:
        placed = {name: value.to(precision.device) for name, value in batch.items()}
        if not learned_tokens(placed):
            continue
        with precision.autocast():
            share = loss(model, placed) / learned
        precision.scale(share).backward()  # type: ignore[no-untyped-call]
        total += float(share.detach())
    return total


class MoveCheck:
    """Catches an optimizer that trains other tensors than the model's, by the second step."""

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        wanted = set(map(id, trained))
        self.parameters = {
            name: p for name, p in model.named_parameters() if id(p) in wanted and "lora_B" in name
        }
        self.start = {name: _fingerprint(p) for name, p in self.parameters.items()}
        self.steps = 0

    def after(self, step: Step) -> None:
        """Raise CheckFailed after the second step that should have moved every adapter."""
        if step.skipped or not step.learning_rate or self.steps == 2:
            return
        self.steps += 1
        if self.steps < 2:
            return
        still = [n for n, p in self.parameters.items() if _fingerprint(p) == self.start[n]]
        if still:
            raise CheckFailed(
                f"{len(still)} of {len(self.parameters)} adapters did not move in two steps: "
                + ", ".join(still[:3]),
                "raise the learning rate; else an earlier change detached the optimizer's tensors",
            )


def _fingerprint(parameter: Tensor) -> tuple[float, float]:
    values = parameter.detach().double()
    return float(values.sum()), float(values.abs().sum())


def finite(value: float) -> float | None:
    """``value``, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _listed(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
