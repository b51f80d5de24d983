"""All that decides a run's result, so that a resumed run is the same run or is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.models.trained import base_hash
from qlora_core.training.batches import Sample
from qlora_core.training.schema import TrainSettings

FREE = frozenset({
    "model", "data", "eval_data",  # their content is compared, not their place
    "output", "resume", "allow_change", "save_every", "keep", "sample_prompts", "trackers",
    "offline", "revision", "plugin", "block", "trust_remote_code",
})  # fmt: skip
"""Settings that may change between the parts of a run: they do not decide its result."""
PACKAGES = ("qlora-core", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def identity(
    settings: TrainSettings,
    *,
    train: Sequence[Sample],
    evaluation: Sequence[Sample],
    base: Path,
    template: str,
    architecture: str,
    processes: int,
    device: str,
    compute_dtype: str,
) -> dict[str, Any]:
    """Key -> JSON value; equal dictionaries mean the same training, step by step.

    The samples' ids and labels stand for data, tokenizer and prompt format together.
    """
    chosen = {k: v for k, v in asdict(settings).items() if k not in FREE}
    return plain({
        **chosen,
        "data_hash": samples_hash(train),
        "evaluation_hash": samples_hash(evaluation),
        "base_hash": base_hash(base),
        "template_hash": hashlib.sha256(template.encode()).hexdigest(),
        "family": architecture,
        "versions": versions(),
        "processes": processes,
        "hardware": f"{device}, {compute_dtype}",
    })  # fmt: skip


def require_same(
    before: Mapping[str, Any], after: Mapping[str, Any], allowed: Iterable[str]
) -> list[str]:
    """The differences, as sentences, if all their keys are ``allowed``.

    Raises BadInput that lists every other one with both values, and for an unknown key.
    """
    permitted = set(allowed)
    for key in sorted(permitted - before.keys() - after.keys()):
        close = get_close_matches(key, [*after], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(after))}"
        raise BadInput(f"--allow-change {key}: nothing recorded is called so", hint)
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    said = {k: f"{k}: was {before.get(k)!r}, is {after.get(k)!r}" for k in changed}
    refused = [k for k in changed if k not in permitted]
    if refused:
        raise BadInput(
            "this is not the run that is to be resumed:\n"
            + "\n".join(f"  {said[k]}" for k in refused),
            "set them back, or accept each with "
            + " ".join(f"--allow-change {k}" for k in refused),
        )
    return list(said.values())


def settings_differ(before: Mapping[str, Any], settings: TrainSettings) -> bool:
    """Whether a deciding setting is not as it was."""
    chosen = plain({k: v for k, v in asdict(settings).items() if k not in FREE})
    return any(before.get(key) != value for key, value in chosen.items())


def samples_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 over ids and labels, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((list(sample["input_ids"]), list(sample["labels"]))).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as reading them back from JSON gives them: lists for tuples."""
    made: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return made
