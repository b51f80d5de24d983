"""What a finished run leaves: the adapter with all that it needs to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from qlora_core.data.tokenizer import stop_token_ids
from qlora_core.data.verify import record_prompts
from qlora_core.errors import is_out_of_memory
from qlora_core.training import checkpoints, files
from qlora_core.training.samples import Samples
from qlora_core.training.session import Session
from qlora_core.training.setup import Inputs


def samples_for(inputs: Inputs, count: int) -> Samples:
    """So many prompts for before and after: of evaluation rows, else of training rows."""
    rows = inputs.data.evaluation or inputs.data.train
    return Samples(rows, inputs.tokenizer, _stops(inputs), count)


def ask_before(session: Session) -> Samples:
    """The prompts of a run, asked and recorded while its adapters are as they began.

    A resumed run keeps those that were asked then, whatever is asked for now: what had no answer
    before has none to compare with.
    """
    record, inputs = session.run.record, session.inputs
    if record["samples"] or session.position.step:
        return samples_for(inputs, len(record["samples"]))
    samples = samples_for(inputs, inputs.settings.sample_prompts)
    found = answers(session, samples)
    questions = samples.questions()
    record["samples"] = [q | {"before": a} for q, a in zip(questions, found, strict=True)]
    return samples


def save_result(session: Session, samples: Samples) -> None:
    """Write ``adapter/`` and record evaluation and answers of the weights in it."""
    run, position = session.run, session.position
    kept = position.step
    if session.inputs.settings.keeps_best and position.best_step is not None:
        kept = position.best_step
        checkpoints.load_adapter(run.checkpoints / checkpoints.name_of(kept), session.model)
    if run.writes:
        _publish_adapter(session)
    losses = {m["step"]: m["eval_loss"] for m in run.metrics() if "eval_loss" in m}
    run.record["evaluation"]["after"] = losses.get(kept)
    run.record["adapter_step"] = kept
    found = zip(samples.questions(), answers(session, samples), strict=True)
    texts = {(asked["prompt"], asked["expected"]): text for asked, text in found}
    for row in run.record["samples"]:
        row["after"] = texts.get((row["prompt"], row["expected"]))
    if any(row["after"] is None and row["before"] is not None for row in run.record["samples"]):
        run.note(
            "other-prompts",
            "sample prompts of before the training could not be asked again: the rows are others",
            "nothing to do: the adapter is not affected",
        )


def answers(session: Session, samples: Samples) -> list[str | None]:
    """What the model answers; None, and a notice why, where it cannot generate.

    It may be anybody's class: that it trains is no promise that it can be asked.
    """
    try:
        return [*samples.answers(session.model, session.loop.precision)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        session.run.note(
            "no-answers",
            f"{type(error).__name__} when the model was asked the sample prompts: {error}",
            "training goes on; sample_prompts = 0 asks none",
        )
        return [None] * len(samples.chosen)


def _publish_adapter(session: Session) -> None:
    inputs, model = session.inputs, session.model
    tensors = checkpoints.adapter_tensors(model)

    def write(staging: Path) -> None:
        checkpoints.write_adapter(staging, model, tensors)
        inputs.tokenizer.save_pretrained(str(staging))
        record_prompts(inputs.tokenizer, staging, inputs.detection.architecture.tokenizer)
        _generation_config(session).save_pretrained(str(staging))

    size = checkpoints.adapter_bytes(model, tensors) + _tokenizer_bytes(inputs.tokenizer)
    run = session.run
    facts = {"run_id": run.run_id, "step": session.position.step}
    files.publish(run.adapter, write, size=size, facts=facts)


def _tokenizer_bytes(tokenizer: Any) -> int:
    """Of its largest file, as it will be written; 0 for the few that have no such file."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return len(backend.to_str(pretty=True).encode()) if hasattr(backend, "to_str") else 0


def _generation_config(session: Session) -> GenerationConfig:
    """The base model's, with the tokens that end an answer as they were trained."""
    stated = getattr(session.model, "generation_config", None)
    config = GenerationConfig() if stated is None else GenerationConfig(**stated.to_diff_dict())
    try:
        config.validate(strict=True)
    except ValueError:  # as some models ship it, transformers loads it but refuses to save it
        config = GenerationConfig()
    stops = _stops(session.inputs)
    config.eos_token_id = stops[0] if len(stops) == 1 else stops or None
    config.pad_token_id = session.inputs.tokenizer.pad_token_id
    config.bos_token_id = session.inputs.tokenizer.bos_token_id
    return config


def _stops(inputs: Inputs) -> list[int]:
    return stop_token_ids(inputs.tokenizer, inputs.detection.architecture.tokenizer)
