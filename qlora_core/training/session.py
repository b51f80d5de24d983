"""One run at work: what happens after each step, and when it ends."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from peft import PeftModel

from qlora_core.training import checkpoints
from qlora_core.training.alarms import Alarms
from qlora_core.training.batches import Batches
from qlora_core.training.evaluate import Evaluation, evaluate
from qlora_core.training.loop import Loop, Step, finite
from qlora_core.training.losses import Loss, summed_loss
from qlora_core.training.optimizers import restore_schedule
from qlora_core.training.position import Position
from qlora_core.training.progress import Progress
from qlora_core.training.runs import Run
from qlora_core.training.setup import Inputs
from qlora_core.training.signals import StopRequests, TrainingInterrupted

SAVES = 10
"""Checkpoints of a run that does not say how often."""


@dataclass(kw_only=True)
class Session:
    """The parts of one run. ``work`` takes it from where it is to its last step."""

    run: Run
    inputs: Inputs
    model: PeftModel
    loop: Loop
    batches: Batches
    total: int
    progress: Progress
    loss: Loss = summed_loss
    position: Position = field(default_factory=Position)
    saved_step: int = 0
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def alarms(self) -> Alarms:
        """What watches the numbers of every step."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        return Alarms(self.run, self.batches.samples, guessing=math.log(vocabulary))

    def work(self) -> None:
        """Train up to the last step, or to an early stop.

        Raises TrainingInterrupted after a signal, with a checkpoint of the last step.
        """
        with StopRequests() as requests:
            if self.position.step == 0:
                self._evaluate_before()
            self.progress.start(self.position.step + 1, self.total)
            self._stop_if_asked(requests)
            if self.position.step < self.total and not self.stopped_early:
                self._steps(requests)
            self.save()
            self._stop_if_asked(requests)

    def _steps(self, requests: StopRequests) -> None:
        self.loop.skipped = self.position.skipped
        groups = self.batches.groups(self.position.step + 1, self.total)
        for step in self.loop.steps(groups):
            self._record(step)
            settings = self.inputs.settings
            evaluates = bool(self.inputs.data.evaluation) and self._is_due(settings.eval_every)
            improved = evaluates and self.evaluate()
            if self._is_due(self._save_every) or (improved and settings.keeps_best):
                self.save()
            self._stop_if_asked(requests)
            if self.stopped_early:
                self._note_early_stop()
                return

    def evaluate(self) -> bool:
        """Evaluate the weights as they are now; whether they are the best so far."""
        found = self._measure()
        position = self.position
        if math.isfinite(found.loss) and (position.best is None or found.loss < position.best):
            position.best, position.best_step, position.waits = found.loss, position.step, 0
            return True
        position.waits += 1
        return False

    @property
    def stopped_early(self) -> bool:
        """Whether the evaluations have not improved for as long as the settings allow."""
        patience = self.inputs.settings.early_stop
        return patience is not None and self.position.waits >= patience

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one, and remove superfluous ones."""
        if self.saved_step == self.position.step or not self.position.step:
            return
        self._update_record()
        self.run.save()  # first, so that no checkpoint outlives the metrics of its steps
        if self.run.writes:
            path = checkpoints.save_checkpoint(
                self.run.checkpoints, self.model, self.loop.optimizer, self._state(),
                run_id=self.run.run_id,
            )  # fmt: skip
            best = self.position.best_step if self.inputs.settings.keeps_best else None
            protected = [] if best is None else [best]
            checkpoints.retain(
                self.run.checkpoints, self.inputs.settings.keep, self.run.run_id, protected
            )
            self.inputs.registry.observe("qlora_checkpoint_saved", run=self.run, path=path)
        self.saved_step = self.position.step
        self.loop.processes.wait()

    def restore(self, path: Any) -> None:
        """Go on from the checkpoint at ``path``."""
        state = checkpoints.load_checkpoint(path, self.model, self.loop.optimizer)
        restore_schedule(self.loop.schedule, state["schedule"])
        self.loop.precision.restore(state["scaler"])
        self.position = Position(**state["position"])
        self.saved_step = self.position.step
        self.run.rewind(self.position.step)
        self._update_record()

    def _evaluate_before(self) -> None:
        if self.inputs.data.evaluation:
            self.position.before = finite(self._measure().loss)

    def _measure(self) -> Evaluation:
        found = evaluate(
            self.model,
            self.inputs.data.evaluation,
            self.inputs.collate,
            batch_size=self.inputs.settings.batch_size,
            precision=self.loop.precision,
            processes=self.loop.processes,
            loss=self.loss,
            pack_tokens=self.batches.pack_tokens,
        )
        step, loss = self.position.step, finite(found.loss)
        if loss is None:
            self.run.note(
                "evaluation-not-finite",
                f"the evaluation loss after step {step} is {found.loss}",
                "look at the evaluation rows; compute_dtype = bfloat16 has a wider range",
                step=step,
            )
        self._publish({"step": step, "eval_loss": loss, "eval_tokens": found.tokens})
        return found

    def _record(self, step: Step) -> None:
        position = self.position
        position.step, position.skipped = step.step, self.loop.skipped
        position.peak_memory_bytes = max(position.peak_memory_bytes, step.peak_memory_bytes)
        self.alarms.after(step, position)
        if not step.skipped:
            position.tokens += step.tokens
            position.learned_tokens += step.learned_tokens
            position.last_loss = step.loss
            if position.first_loss is None:
                position.first_loss = step.loss
        self._update_record()
        self._publish(step.to_dict())

    def _publish(self, line: dict[str, Any]) -> None:
        """To the metrics file, the screen and the observers."""
        self.run.write(line)
        self.progress.step(line)
        if self.run.writes:
            self.inputs.registry.observe("qlora_step_finished", run=self.run, step=line)

    def _is_due(self, every: int | None) -> bool:
        last = self.position.step == self.total
        return last or (every is not None and self.position.step % every == 0)

    @property
    def _save_every(self) -> int:
        return self.inputs.settings.save_every or max(1, self.total // SAVES)

    def _stop_if_asked(self, requests: StopRequests) -> None:
        """Every process stops at the same step, whichever of them got the signal."""
        (asked,) = self.loop.processes.sum([float(requests.signum > 0)], self.inputs.device)
        if not asked:
            return
        self.save()
        raise TrainingInterrupted(
            requests.signum or signal.SIGTERM,
            f"interrupted after step {self.position.step} of {self.total}"
            + (f"; it is saved in {self.run.checkpoints}" if self.saved_step else ""),
            "the same command with --resume goes on from there",
        )

    def _note_early_stop(self) -> None:
        position = self.position
        self.run.note(
            "early-stop",
            f"stopped at step {position.step} of {self.total}: {position.waits} evaluations "
            f"without improvement on step {position.best_step}",
            "raise early_stop to be more patient",
            step=position.step,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.position.step,
            "position": dataclasses.asdict(self.position),
            "schedule": self.loop.schedule.state_dict(),
            "scaler": self.loop.precision.scaler.state_dict(),
        }

    def _update_record(self) -> None:
        position, record = self.position, self.run.record
        now = time.monotonic()
        position.seconds, self.began = position.seconds + now - self.began, now
        record["seconds"] = position.seconds
        record["steps"] = position.step
        record["tokens"], record["learned_tokens"] = position.tokens, position.learned_tokens
        record["skipped_steps"] = position.skipped_in_all
        record["loss"] = {"first": position.first_loss, "last": position.last_loss}
        record["evaluation"] |= {
            "before": position.before, "best": position.best, "best_step": position.best_step
        }  # fmt: skip
        record["memory"]["measured_peak_bytes"] = position.peak_memory_bytes
