"""Two processes train what one does; stopped, they go on together; sharding is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from exams.soak import numeric, small
from exams.soak.resume import Death
from exams.soak.together import PATIENCE, Ended, free_port, together
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import BadInput
from qlora_core.training.processes import SHARDED as VARIABLES
from qlora_core.training.schema import TrainSettings

SHARDED = tuple(VARIABLES)
CLOSE = 1e-5
"""Relative: losses of two processes and of one, in float32, after eight steps of AdamW."""
Check = tuple[bool, str]


class Ranks:
    """A bench, a run of two processes to compare with, and the cases."""

    def __init__(self, bench: small.Bench) -> None:
        self.bench = bench
        self.straight = self._settings("straight", seed=0)
        ended = together(self.straight)
        if any(end.code for end in ended):
            raise RuntimeError(f"two processes do not train: {ended}")
        self.expected = small.trace(self.straight.output)

    def _settings(self, output: str, **changes: Any) -> TrainSettings:
        return self.bench.settings(output, **{"dropout": 0.0, "eval_split": 0.25} | changes)

    def _fresh(self) -> TrainSettings:
        shutil.rmtree(self.bench.folder / "run", ignore_errors=True)
        return self._settings("run")

    def as_one_process(self) -> Case:
        """The same micro-batches, summed by one process."""
        one = small.run(self._settings("one", gradient_accumulation=4))
        pairs = zip(one.metrics(), _metrics(self.straight), strict=True)
        key = {True: "eval_loss", False: "loss"}
        losses = [(a[k], b[k]) for a, b in pairs for k in [key["eval_loss" in a]]]
        worst = max(abs(a - b) / abs(a) for a, b in losses)
        weights = _largest_difference(one.adapter, Path(self.straight.output) / "adapter")
        figures = {"relative difference of losses": worst, "difference of weights": weights}
        said = ", ".join(f"{name} {value:.1e}" for name, value in figures.items())
        return Case("as one process", worst <= CLOSE, said, figures)

    def again(self) -> Case:
        """Two processes twice."""
        settings = self._fresh()
        return self._same("twice the same", settings, together(settings))

    def killed(self, step: int) -> Case:
        """Both die after a step; both are resumed."""
        settings = self._fresh()
        dead = together(settings, lambda rank: [Death(step)] if rank == 0 else [Follower(step)])
        return self._resumed(f"killed after step {step}", settings, dead, (9, 1))

    def one_dies(self, rank: int) -> Case:
        """One process dies: the other tells so and ends with 1, without a result."""
        settings = self._fresh()

        def dying(mine: int) -> Sequence[object]:
            _at_gradient(lambda step: mine == rank and step == 5 and os._exit(9))
            return ()

        began = time.monotonic()
        dead = together(settings, dying)
        seconds = time.monotonic() - began
        if (Path(settings.output) / "adapter").exists() or dead[1 - rank].code == 0:
            return Case(f"rank {rank} dies", False, f"the other went on: {dead}")
        code, words = dead[1 - rank]
        told = "lost another process" in words and "  -> " in words and "--resume" in words
        if code != 1 or not told or "Traceback" in words:
            return Case(f"rank {rank} dies", False, f"the other ended without a word: {dead}")
        case = self._resumed(f"rank {rank} dies", settings, dead, (9, 1))
        return dataclasses.replace(case, figures={"seconds until all had ended": seconds})

    def asked(self, rank: int) -> Case:
        """One process gets SIGTERM: both stop at the same step, with its checkpoint."""
        settings = self._fresh()

        def asking(mine: int) -> Sequence[object]:
            _at_gradient(lambda step: mine == rank and step == 4 and _ask())
            return ()

        stopped = together(settings, asking)
        return self._resumed(f"SIGTERM to rank {rank}", settings, stopped, (143,))

    def poisoned(self, rank: int) -> Case:
        """A gradient of one process is NaN: both skip the step, and nothing breaks."""
        settings = self._fresh()
        trial = numeric.Trial("", "skipped", {}, numeric.gradient(math.nan), (3,))

        def poisoning(mine: int) -> Sequence[object]:
            if mine == rank:
                numeric.strike(trial)
            return ()

        ended = together(settings, poisoning)
        skipped = [line["step"] for line in _metrics(settings) if line.get("skipped")]
        broken = numeric.not_finite(Path(settings.output))
        passed = skipped == [3] and not broken and not any(end.code for end in ended)
        return Case(f"NaN in rank {rank}", passed, f"skipped {skipped}, not finite {broken}")

    def other_count(self, count: int) -> Case:
        """Resumed by another number of processes: refused with both values."""
        settings = self._fresh()
        together(settings, lambda rank: [small.Stopper(4)] if rank == 0 else ())
        given = dataclasses.replace(settings, resume=True)
        before = (Path(settings.output) / "run.json").read_bytes()
        ended = [_alone(given)] if count == 1 else together(given, count=count)
        refused = all(end.code == 2 for end in ended)
        said = f"processes: was 2, is {count}" in ended[0].words
        same = before == (Path(settings.output) / "run.json").read_bytes()
        return Case(f"resumed by {count}", refused and said and same, f"{ended}")

    def who_writes(self) -> Case:
        """Only the first process opens, makes, renames or removes anything in the folder."""
        settings = self._fresh()

        def watching(mine: int) -> Sequence[object]:
            if mine:
                sys.addaudithook(lambda event, given: _refuse_writes(event, given, settings.output))
            return ()

        return self._same("only rank 0 writes", settings, together(settings, watching))

    def sharded(self, name: str, count: int = 2) -> Case:
        """Sharding that was asked for is refused, never ignored: by one process, too."""
        settings = self._fresh()

        def asking(mine: int) -> Sequence[object]:  # noqa: ARG001
            os.environ[name] = "true"
            return ()

        ended = together(settings, asking, count)
        said = all("replicated" in end.words and "--multi_gpu" in end.words for end in ended)
        passed = said and all(end.code == 2 for end in ended)
        return Case(
            f"{name}=true, {count}", passed and not Path(settings.output).exists(), f"{ended}"
        )

    def launched(self) -> Case:
        """By `accelerate launch`, through the command line, as users do."""
        settings = self._fresh()
        flags = _flags(settings)
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no",
            "--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port()),
            "-m", "qlora_core.cli.main", "train", *flags,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        ended = [Ended(done.returncode, done.stderr[-1500:])]
        return self._same("accelerate launch", settings, ended)

    def _resumed(
        self, name: str, settings: TrainSettings, ended: list[Ended], codes: tuple[int, ...]
    ) -> Case:
        if not all(end.code in codes for end in ended):
            return Case(name, False, f"ended with {ended}")
        again = together(dataclasses.replace(settings, resume=True))
        return self._same(name, settings, again)

    def _same(self, name: str, settings: TrainSettings, ended: list[Ended]) -> Case:
        if any(end.code for end in ended):
            return Case(name, False, f"{ended}")
        different = small.difference(self.expected, small.trace(settings.output))
        return Case(name, not different, different or "identical")


class Follower(Death):
    """Dies, in a process that has no metrics to observe, when its gradient is computed."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        _at_gradient(lambda now: now > step and os._exit(9))


def _at_gradient(act: Callable[[int], object]) -> None:
    """Call ``act`` with the step's number whenever a gradient was computed, in this process."""

    class Every(tuple[int, ...]):
        def __contains__(self, step: object) -> bool:
            act(int(str(step)))
            return False

    trial = numeric.Trial("", "", {}, lambda _, loss: loss, Every())
    numeric.strike(trial)


def _ask() -> bool:
    os.kill(os.getpid(), signal.SIGTERM)
    return True


def _refuse_writes(event: str, given: Any, output: str) -> None:
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
        event == "open" and str(given[1])[:1] in "wax" and given[1] is not None
    )
    if writes and str(given[0]).startswith(output):
        print(f"this process is not to write: {event} {given[:2]}", file=sys.stderr, flush=True)
        os._exit(77)


def _alone(settings: TrainSettings) -> Ended:
    try:
        small.run(settings)
    except BadInput as refusal:
        return Ended(refusal.exit_code, str(refusal))
    return Ended(0, "")


def _metrics(settings: TrainSettings) -> list[dict[str, Any]]:
    path = Path(settings.output) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _largest_difference(one: Path, other: Path) -> float:
    name = "adapter_model.safetensors"
    first, second = load_file(one / name), load_file(other / name)
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def _flags(settings: TrainSettings) -> list[str]:
    """The settings as flags of the command line, those that differ from the defaults."""
    flags = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "columns":
            values = value if isinstance(value, tuple) else (value,)
            flags += [w for v in values for w in (f"--{field.name.replace('_', '-')}", str(v))]
    return flags


def cases(count: int, seed: int) -> Iterator[Case]:  # noqa: ARG001
    """All of them, those that find most first."""
    with small.bench() as bench:
        ranks = Ranks(bench)
        made: list[Callable[[], Case]] = [
            ranks.as_one_process,
            lambda: ranks.killed(4),
            lambda: ranks.sharded(SHARDED[0]),
            lambda: ranks.other_count(1),
            lambda: ranks.one_dies(1),
            ranks.who_writes,
            lambda: ranks.asked(1),
            lambda: ranks.poisoned(1),
            ranks.again,
            ranks.launched,
            lambda: ranks.one_dies(0),
            lambda: ranks.asked(0),
            lambda: ranks.poisoned(0),
            lambda: ranks.other_count(3),
            *(lambda name=name: ranks.sharded(name) for name in SHARDED[1:]),
            lambda: ranks.sharded(SHARDED[0], 1),
            *(lambda step=step: ranks.killed(step) for step in (1, 3, 6, 7)),
        ]  # fmt: skip
        for case in made[:count]:
            yield case()


SUITE = Suite(
    name="ranks",
    promise="two processes train what one does, stop and go on together; sharding is refused",
    cases=cases,
    full=21,
    quick=4,
    baseline=defined_in("exams.soak.plain_ranks", "cases"),
)
