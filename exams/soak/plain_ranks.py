"""Two processes of plain transformers and PEFT, as ``torchrun`` starts the documentation's script.

Judged mildly: of what they say when something goes wrong only the exit codes count.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from exams.soak import small
from exams.soak.plain import base_of, trainer_of
from exams.soak.plain_faults import Act
from exams.soak.ranks import CLOSE
from exams.soak.together import Ended, side_by_side
from exams.suite import Case

WHOLE: dict[str, Any] = {
    "max_steps": 8, "save_steps": 2, "lora": {"lora_dropout": 0.0}, "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}  # fmt: skip
"""Checkpointing as PEFT's preparation switches it on fails in several processes."""
STEP = 5
"""At which something happens."""
Happens = Callable[[int], object]
"""With the rank: what one process does to itself just before its optimizer's step."""


class Ranks:
    """A bench, two processes that nothing happened to, and the cases."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench = bench
        self.output = bench.folder / "run"
        ended = self._trained()
        self.expected = self._losses(ended)
        if not self.expected:
            raise RuntimeError(f"two processes do not train: {ended}")

    def as_one_process(self) -> Case:
        """The same micro-batches, summed by one process."""
        ended = self._fresh(count=1, gradient_accumulation_steps=4)
        worst = max(
            abs(a - b) / abs(b) for a, b in zip(self._losses(ended), self.expected, strict=True)
        )
        return Case("as one process", worst <= CLOSE, f"losses differ by {worst:.1e}")

    def again(self) -> Case:
        """Two processes twice."""
        return self._same("twice the same", self._fresh())

    def hit(self, name: str, happens: Happens, *, first_is: int | None = None) -> Case:
        """It happens at a step; all must end, none with 0; resumed they come to the same end."""
        ended = self._fresh(happens)
        if not all(end.code for end in ended) or -signal.SIGKILL in [end.code for end in ended]:
            return Case(name, False, f"exit codes {[end.code for end in ended]}")
        if first_is is not None and ended[0].code != first_is:
            return Case(name, False, f"exit code {ended[0].code}")
        return self._same(name, self._trained())

    def other_count(self, count: int) -> Case:
        """Resumed by another number of processes: refused, or the same end."""
        self._fresh(lambda _: os._exit(9))
        ended = self._trained(count=count)
        refused = all(end.code for end in ended)
        name = f"resumed by {count}"
        return Case(name, True, "refused") if refused else self._same(name, ended)

    def sharded(self) -> Case:
        """Sharding that was asked for: refused, or done (then the losses are the same)."""
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        try:
            ended = self._fresh()
        finally:
            del os.environ["ACCELERATE_USE_FSDP"]
        refused = all(end.code for end in ended)
        return Case("sharding", refused, f"exit codes {[end.code for end in ended]}")

    def _fresh(self, happens: Happens | None = None, **given: Any) -> list[Ended]:
        shutil.rmtree(self.output, ignore_errors=True)
        return self._trained(happens, **given)

    def _trained(
        self, happens: Happens | None = None, *, count: int = 2, **given: Any
    ) -> list[Ended]:
        def work(rank: int) -> None:
            trainer = trainer_of(base_of(self.bench.model), self.output, **{**WHOLE, **given})
            if happens:
                trainer.add_callback(Act(lambda *_: happens(rank), STEP))
            there = self.output.is_dir() and get_last_checkpoint(str(self.output)) is not None
            trainer.train(resume_from_checkpoint=there or None)
            if rank == 0:
                losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
                (self.output / "losses.json").write_text(json.dumps(losses), encoding="utf-8")

        return side_by_side(work, self.bench.folder, count)

    def _losses(self, ended: list[Ended]) -> list[float]:
        """Of every step; none where a process failed."""
        if any(end.code for end in ended):
            return []
        found: list[float] = json.loads((self.output / "losses.json").read_text("utf-8"))
        return found

    def _same(self, name: str, ended: list[Ended]) -> Case:
        found = self._losses(ended)
        if not found:
            return Case(name, False, f"exit codes {[end.code for end in ended]}")
        return Case(name, found == self.expected, "identical" if found == self.expected else
                    f"losses {found[-2:]} in place of {self.expected[-2:]}")  # fmt: skip


def _only(rank: int, act: Callable[[], object]) -> Happens:
    return lambda mine: act() if mine == rank else None


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def cases(count: int, seed: int) -> Iterator[Case]:
    """What `ranks` asks of two processes, as far as the Trainer has it."""
    del seed
    with small.bench() as bench:
        ranks = Ranks(bench)
        made: list[Callable[[], Case]] = [
            ranks.as_one_process,
            ranks.again,
            lambda: ranks.hit("killed", lambda _: os._exit(9)),
            lambda: ranks.hit("rank 0 dies", _only(0, lambda: os._exit(9))),
            lambda: ranks.hit("rank 1 dies", _only(1, lambda: os._exit(9))),
            lambda: ranks.hit("SIGTERM to both", lambda _: _terminate(), first_is=-15),
            lambda: ranks.hit("SIGTERM to rank 1", _only(1, _terminate), first_is=143),
            lambda: ranks.other_count(1),
            lambda: ranks.other_count(3),
            ranks.sharded,
        ]
        for case in made[:count]:
            yield case()
