"""What the numbers of a step give cause to say: skipped steps, spikes, divergence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from qlora_core.errors import TrainingStopped
from qlora_core.training.batches import Sample
from qlora_core.training.loop import Step
from qlora_core.training.position import Position
from qlora_core.training.runs import Run

SPIKE_WINDOW, SPIKE_HISTORY, SPIKE_SIGMAS = 128, 32, 6.0
SKIPS_IN_ALL = 10
"""More skipped steps than this, and than every hundredth, end the run."""


class Alarms:
    """Notes, each with its step, what a user should look at. Stops where it is hopeless.

    ``guessing`` is the loss of a model that knows nothing: the log of the vocabulary's size.
    """

    def __init__(self, run: Run, samples: Sequence[Sample], *, guessing: float) -> None:
        self.run = run
        self.samples = samples
        self.guessing = guessing

    def after(self, step: Step, position: Position) -> None:
        """Look at one step, of a run that is at ``position``.

        Raises TrainingStopped where steps are skipped again and again.
        """
        if step.skipped:
            position.skipped_in_all += 1
            self._skip(step, position.skipped_in_all)
            return
        self._spike(step, position.losses)
        self._divergence(step, position)
        position.losses.append(step.loss)
        del position.losses[:-SPIKE_WINDOW]

    def _skip(self, step: Step, skips: int) -> None:
        sources = [self.samples[i].get("source") for i in step.indices[:8]]
        named = ", ".join(f"{s[0]}:{s[1]}" for s in sources if s) or str(step.indices[:8])
        self.run.note(
            "skipped-step",
            f"step {step.step} was skipped: loss {step.loss}, gradient norm {step.gradient_norm} "
            f"(samples {named})",
            "look at these rows; if it goes on, lower the learning rate",
            step=step.step,
        )
        if skips > max(SKIPS_IN_ALL, step.step // 100):
            raise TrainingStopped(
                f"{skips} of {step.step} steps had no finite gradient, the last on {named}",
                "look at the rows that the notices name, or train in bfloat16 (compute_dtype)",
            )

    def _spike(self, step: Step, losses: Sequence[float]) -> None:
        if len(losses) < SPIKE_HISTORY:
            return
        mean, spread = statistics.fmean(losses), statistics.stdev(losses)
        if step.loss > mean + SPIKE_SIGMAS * spread:
            self.run.note(
                "loss-spike",
                f"the loss of step {step.step} is {step.loss:.3f}; the {len(losses)} before "
                f"it had {mean:.3f} on average, give or take {spread:.3f}",
                "harmless once; if the loss stays up, lower the learning rate",
                step=step.step,
            )

    def _divergence(self, step: Step, position: Position) -> None:
        """Once: worse than knowing nothing, and twice as bad as at the start."""
        start = step.loss if position.first_loss is None else position.first_loss
        if step.loss <= max(2 * start, self.guessing):
            return
        if all(notice["code"] != "diverged" for notice in self.run.record["notices"]):
            self.run.note(
                "diverged",
                f"the loss of step {step.step} is {step.loss:.3f}; it began at {start:.3f}, and "
                f"a model that knows nothing has {self.guessing:.3f}",
                "lower the learning rate; what this run leaves is worth nothing",
                step=step.step,
            )
