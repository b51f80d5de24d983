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
from qlora_core.registry.hooks import PREPARE
from qlora_core.registry.manager import Registry
from qlora_core.training.batches import Sample
from qlora_core.training.schema import TrainSettings
from qlora_core.training.setup import Inputs

FREE = frozenset({
    "model", "data", "eval_data",  # their content is compared, not their place
    "memory_budget",  # gradients do not depend on what layers keep
    "output", "resume", "allow_change", "save_every", "keep", "sample_prompts", "trackers",
    "offline", "revision", "plugin", "block", "trust_remote_code",
})  # fmt: skip
"""Settings that may change between the parts of a run: they do not decide its result."""
PACKAGES = ("qlora-core", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def identity(inputs: Inputs, *, base: str, processes: int) -> dict[str, Any]:
    """Key -> JSON value; equal dictionaries mean the same training, step by step.

    The samples' ids and labels stand for data, tokenizer and prompt format together.
    ``base`` is the base model's ``base_hash``.
    """
    chosen = {k: v for k, v in asdict(inputs.given).items() if k not in FREE}
    template = inputs.tokenizer.chat_template or ""
    return plain({
        **chosen,
        "data_hash": samples_hash(inputs.data.train),
        "evaluation_hash": samples_hash(inputs.data.evaluation),
        "base_hash": base,
        "template_hash": hashlib.sha256(template.encode()).hexdigest(),
        "family": inputs.detection.architecture.name,
        "plugins": plugins_at_work(inputs.registry, inputs.detection.architecture.name),
        "versions": versions(),
        "processes": processes,
        "hardware": f"{inputs.device.type}, {inputs.compute_dtype}",
    })  # fmt: skip


def plugins_at_work(registry: Registry, family: str) -> dict[str, str]:
    """The plugins that take part in what is trained -> where from, and the hash of their module.

    That is the one that provides the family, and those that prepare models or tokenizers.
    """
    provider = registry.provided_by(family)
    names = {provider.name} if provider else set()
    for hook in PREPARE:
        calls = getattr(registry.manager.hook, hook).get_hookimpls()
        names |= {call.plugin_name for call in calls}
    found = {}
    for record in registry.records:
        if record.name in names and record.status == "active":
            module = registry.manager.get_plugin(record.name)
            file = getattr(module, "__file__", None)
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
            found[record.name] = f"{Path(record.source).name} {record.version} {digest}"
    return found


def free_changes(before: Mapping[str, Any], settings: TrainSettings) -> list[str]:
    """The settings that are not as recorded and need not be, as sentences."""
    now = plain(asdict(settings))
    silent = ("resume", "allow_change")  # they belong to one part of a run alone
    changed = [k for k in sorted(FREE) if k not in silent and k in before and before[k] != now[k]]
    return [f"{k}: was {before[k]!r}, is {now[k]!r}" for k in changed]


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
