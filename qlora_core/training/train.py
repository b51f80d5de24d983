"""``train``: from settings to an adapter, and nothing on the way that is not recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from qlora_core.data.formats import template_report
from qlora_core.data.template import clock
from qlora_core.errors import TrainingStopped, is_out_of_memory
from qlora_core.models.adapter_checks import adapter_report
from qlora_core.models.adapters import enable_checkpointing
from qlora_core.models.loader import LoadedModel
from qlora_core.models.memory_plan import OPTIMIZER, MemoryPlan
from qlora_core.models.peak_memory import explain_out_of_memory
from qlora_core.registry.manager import Registry
from qlora_core.training import files, setup
from qlora_core.training.activations import settle
from qlora_core.training.identity import plain, versions
from qlora_core.training.loop import accumulate
from qlora_core.training.optimizers import optimizer_name
from qlora_core.training.precision import Precision
from qlora_core.training.processes import Processes
from qlora_core.training.progress import Progress, Silent, default_progress
from qlora_core.training.result import ask_before, save_result
from qlora_core.training.resume import go_back, require_same_run
from qlora_core.training.roads import Road, choose_road, compile_where_it_repays
from qlora_core.training.runs import Run, claimed, new_record
from qlora_core.training.schema import TrainSettings
from qlora_core.training.session import Session
from qlora_core.training.setup import Inputs
from qlora_core.training.signals import TrainingInterrupted
from qlora_core.training.vocabulary import check_tokens

log = logging.getLogger("qlora-core")


def train(
    settings: TrainSettings, *, registry: Registry | None = None, progress: Progress | None = None
) -> Run:
    """Train adapters as ``settings`` say and leave them, with the run's record, in the output.

    ``registry`` None takes every installed plugin; ``progress`` None shows a bar in a terminal
    and lines elsewhere. With ``resume`` a finished run is returned as it is.

    Raises BadInput and DetectionError before anything is computed, CheckFailed where a part of
    the model does not learn, TrainingStopped where the numbers or the disk do not let it go on,
    and TrainingInterrupted (with its ``exit_code``) after SIGINT or SIGTERM.
    """
    registry = setup.registry_for(settings, registry)
    device, _ = setup.place_of(settings)
    processes = Processes(cpu=device.type == "cpu")
    progress = default_progress(processes.main) if progress is None else progress
    progress = progress if processes.main else Silent()
    detection = setup.detect_model(settings, registry)
    output = Path(settings.output)
    new = new_record()
    with claimed(
        output, resume=settings.resume, run_id=new["run_id"], main=processes.main
    ) as found:
        record = processes.from_main(found)
        if record is None and settings.resume:
            progress.say(f"nothing to resume in {output}: starting from step 0")
        side_file = output / "refused_rows.jsonl" if processes.main else None
        inputs = setup.read_inputs(settings, detection, registry, side_file=side_file)
        setup.total_steps(settings, inputs.batches(processes))  # refused before the model loads
        run = Run(output, processes.from_main(record or new), writes=processes.main)
        differs = require_same_run(run, inputs, processes, progress)
        if not differs and _is_done(run):
            progress.say(f"run {run.run_id} in {output} is finished: nothing to do")
            return run
        _say_inputs(inputs, progress)
        return _run(run, inputs, processes, progress, resumed=record is not None)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do, found out without opening a weight."""

    inputs: Inputs
    steps: int
    """Optimizer steps."""
    padding: float
    """The share of positions that is padding, where samples are padded (packed ones have none)."""

    @property
    def prompt(self) -> dict[str, Any]:
        """How the chat template behaves: format, end of turn, what stands before an answer."""
        return template_report(self.inputs.tokenizer, self.inputs.detection.architecture.tokenizer)

    @property
    def memory(self) -> MemoryPlan:
        """The memory of one step, by term."""
        return self.inputs.plan

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "detection": self.inputs.detection.to_dict(),
            "prompt": self.prompt,
            "data": self.inputs.data.report.to_dict(),
            "memory": self.memory.to_dict(),
            "gradient_checkpointing": self.inputs.gradient_checkpointing,
            "steps": self.steps,
            "padding": self.padding,
        }


def dry_run(settings: TrainSettings, registry: Registry | None = None) -> DryRun:
    """Everything up to the first step that needs no weights; writes nothing.

    Raises BadInput and DetectionError as ``train`` does.
    """
    registry = setup.registry_for(settings, registry)
    detection = setup.detect_model(settings, registry)
    inputs = setup.read_inputs(settings, detection, registry, side_file=None)
    batches = inputs.batches(Processes(cpu=inputs.device.type == "cpu"))
    steps = setup.total_steps(settings, batches)
    return DryRun(inputs=inputs, steps=steps, padding=batches.padding())


def _is_done(run: Run) -> bool:
    """Whether the run was finished before, its adapter whole."""
    if run.status != "finished":
        return False
    reason = files.damage(run.adapter)
    if reason is not None:
        log.warning("the adapter of the finished run is not whole (%s): made again", reason)
    return reason is None


def _run(
    run: Run, inputs: Inputs, processes: Processes, progress: Progress, *, resumed: bool
) -> Run:
    """Load, train and save; from the first record on, every outcome is recorded."""
    with _memory_explained(inputs.plan):
        loaded = setup.load_base(inputs)
        check_tokens(run, inputs, loaded)
        session = _session(run, inputs, loaded, processes, progress)
        if resumed:
            go_back(session)
        samples = ask_before(session)
        run.record |= {"status": "running", "finished": None}
        if run.writes:  # adapters and optimizer: what the first save will hold
            files.demand_space(run.directory, inputs.plan.terms[OPTIMIZER])
        run.save()
    with _memory_explained(session.inputs.plan), _outcome(run, inputs.registry, progress):
        session.work()
        save_result(session, samples)
    return run


def _session(
    run: Run, inputs: Inputs, loaded: LoadedModel, processes: Processes, progress: Progress
) -> Session:
    """Adapters, optimizer and loop; the record filled with what is known now."""
    settings = inputs.settings
    progress.say(loaded.quantization.summary())
    model = setup.attach_adapters(inputs, loaded)
    batches = inputs.batches(processes)
    total = setup.total_steps(settings, batches)
    rate = setup.learning_rate(settings, loaded.quantization.total.weights)
    precision = Precision(inputs.device, inputs.compute_dtype)
    road = choose_road(run, model, precision, plain=settings.plain, packing=settings.packing)
    if not processes.all(road.packed, inputs.device) and road.packed:
        road = road.padded(run, "another process of this run cannot pack them")
    if road.packed:
        batches = dataclasses.replace(batches, pack_tokens=inputs.pack_tokens)
    inputs = _planned_again(inputs, road, run, model, progress)
    if road.fast:
        tokens = inputs.data.report.tokens / len(inputs.data.train) * total * batches.group_size
        work = 4 * tokens * loaded.quantization.total.weights
        compile_where_it_repays(run, road.fast, precision, asked=settings.compile, work=work)
    progress.say(road.summary(run.record["fast_path"]))
    gradients = partial(accumulate, loss=road.loss)
    loop = setup.build_loop(
        inputs, model, processes, precision, rate=rate, total=total, gradients=gradients
    )
    run.record |= plain({
        "versions": versions(),
        "hardware": setup.hardware(inputs) | {"processes": processes.count},
        "settings": asdict(settings) | {
            "learning_rate": rate,
            "alpha": settings.alpha or 2 * settings.rank,
            "optimizer": optimizer_name(settings, inputs.device),
            "gradient_checkpointing": "on" if inputs.gradient_checkpointing else "off",
            "total_steps": total,
        },
        "detection": inputs.detection.to_dict(),
        "quantization": loaded.quantization.to_dict(),
        "adapters": adapter_report(model, inputs.detection.architecture),
        "data": inputs.data.report.to_dict(),
        "memory": inputs.plan.to_dict() | {"measured_peak_bytes": None},
        "prompt": template_report(inputs.tokenizer, inputs.detection.architecture.tokenizer)
        | {"clock": clock().isoformat()},
    })  # fmt: skip
    return Session(
        run=run, inputs=inputs, model=model, loop=loop, batches=batches, total=total,
        progress=progress, loss=road.loss,
    )  # fmt: skip


def _planned_again(
    inputs: Inputs, road: Road, run: Run, model: PeftModel, progress: Progress
) -> Inputs:
    """The inputs with the plan for the road that was chosen: recorded, said and acted upon."""
    before, taken = inputs.plan, run.record["fast_path"]
    plan = inputs.planning.taken(road, taken, recomputing=before.gradient_checkpointing)
    inputs = dataclasses.replace(inputs, plan=plan)
    if inputs.gradient_checkpointing and not before.gradient_checkpointing:
        enable_checkpointing(model.get_base_model())
        if road.fast:
            road.fast.recompute_by_themselves()
    if road.fast:
        inputs, taken["memory"] = settle(road.fast, inputs)
    if inputs.plan.terms != before.terms:
        progress.say(f"memory of one step by the road taken\n{inputs.plan.table()}")
    return inputs


def _say_inputs(inputs: Inputs, progress: Progress) -> None:
    detection = inputs.detection
    progress.say(f"{detection.architecture.name}: {detection.reason}")
    for notice in detection.warnings:
        progress.say(f"warning [{notice.code}] {notice.message}\n  -> {notice.remedy}")
    for line in inputs.data.report.summary():
        progress.say(line)
    progress.say(inputs.plan.table())


@contextlib.contextmanager
def _memory_explained(plan: MemoryPlan) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise explain_out_of_memory(error, plan) from error
        raise


@contextlib.contextmanager
def _outcome(run: Run, registry: Registry, progress: Progress) -> Iterator[None]:
    """Tell the observers of start and end, record how it ended, stop the display."""
    if run.writes:
        registry.observe("qlora_run_started", run=run)
    status = "failed"
    run.record.pop("error", None)
    try:
        yield
        run.finish("finished")  # a disk that does not take this has not got the result
        status = "finished"
    except (TrainingInterrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    except TrainingStopped as error:
        status, run.record["error"] = "stopped", error.problem
        raise
    except Exception as error:
        run.record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        progress.stop()
        if status != "finished":
            with contextlib.suppress(TrainingStopped):  # a full disk must not hide why it ended
                run.finish(status)
        if run.writes:
            registry.observe("qlora_run_finished", run=run, outcome=status)
