"""Checkpoints of a run: what is in one, which is the newest whole one, which to keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from qlora_core.errors import CheckFailed, TrainingStopped
from qlora_core.models.peft_keys import load_tensors, repeated, save_tensors
from qlora_core.models.peft_names import fill
from qlora_core.training import files

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
OPTIMIZER, OPTIMIZER_FACTS, STATE = "optimizer.safetensors", "optimizer.json", "state.json"
HEADER_ENTRY = 128
"""Bytes that a tensor takes, beside its name, in the header of a safetensors file; less in fact."""
_NAME = re.compile(r"step-(\d+)")


class Refused(NamedTuple):
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


def name_of(step: int) -> str:
    """The folder's name: ``step-000120``."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step at which the checkpoint at ``path`` was saved."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def save_checkpoint(
    folder: Path, model: PeftModel, optimizer: Optimizer, state: Mapping[str, Any], *, run_id: str
) -> Path:
    """Save adapter, optimizer and ``state`` (JSON values, with ``step``) below ``folder``.

    Raises TrainingStopped, and saves nothing, for weights that are not finite or a full disk.
    """
    path = folder / name_of(state["step"])
    adapter = adapter_tensors(model)
    tensors, facts = _optimizer_parts(optimizer)
    require_finite("optimizer", tensors)
    texts = {OPTIMIZER_FACTS: json.dumps(facts), STATE: json.dumps(state, allow_nan=False)}

    def write(staging: Path) -> None:
        write_adapter(staging, model, adapter)
        save_file(tensors, staging / OPTIMIZER)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")

    size = adapter_bytes(model, adapter) + saved_bytes(tensors) + sum(map(len, texts.values()))
    files.publish(path, write, size=size, facts={"run_id": run_id, "step": state["step"]})
    return path


def load_checkpoint(path: Path, model: PeftModel, optimizer: Optimizer) -> dict[str, Any]:
    """Put adapter and optimizer back as they were saved at ``path`` and return the state.

    What was set of the optimizer (rate, weight decay) stays: a resumed run may have changed it.
    Raises CheckFailed where the tensors are not those of this model.
    """
    load_adapter(path, model)
    facts = json.loads((path / OPTIMIZER_FACTS).read_text(encoding="utf-8"))
    state = _with_tensors(facts["state"], _read(path / OPTIMIZER))
    optimizer.load_state_dict(
        {
            "state": {int(index): values for index, values in state.items()},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of the checkpoint at ``path``."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def load_adapter(path: Path, model: PeftModel) -> None:
    """Replace the adapter's values by those saved at ``path``, every one of them."""
    saved = load_tensors(path / ADAPTER)
    shapes = {name: tensor.shape for name, tensor in saved.items()}
    if differing := sorted({n for n, _ in shapes.items() ^ _shapes(model).items()}):
        raise CheckFailed(
            f"{path} holds another adapter: {len(differing)} other tensors ({differing[0]})",
            "resume with the rank and the targets that the run was started with",
        )
    fill(model, saved)


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter as PEFT saves it, on the CPU. Raises TrainingStopped if not finite."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    require_finite("adapter", tensors)
    return tensors


def require_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise TrainingStopped where a value of ``tensors`` is NaN or infinite."""
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TrainingStopped(
            f"{len(broken)} of {len(tensors)} {what} tensors are not finite; nothing was saved",
            "lower the learning rate and go on from the last checkpoint with --resume",
        )


def saved_bytes(tensors: Mapping[str, Tensor]) -> int:
    """At most so many bytes has the safetensors file of ``tensors``: data and header."""
    return sum(t.nbytes + len(name.encode()) + HEADER_ENTRY for name, t in tensors.items())


def adapter_bytes(model: PeftModel, tensors: Mapping[str, Tensor]) -> int:
    """At most so many bytes has the file of the adapter: some tensors are saved under two names."""
    return saved_bytes(tensors) + saved_bytes(repeated(model, tensors))


def write_adapter(folder: Path, model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Write PEFT's two files into ``folder``."""
    save_tensors(folder / ADAPTER, tensors, repeated(model, tensors))
    config = model.peft_config[model.active_adapter]
    inference, config.inference_mode = config.inference_mode, True  # as PEFT saves it
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = inference


def newest_valid(folder: Path, run_id: str) -> tuple[Path | None, list[Refused]]:
    """The newest whole checkpoint of run ``run_id``, and the newer ones that were passed over."""
    refused: list[Refused] = []
    for path in reversed(all_in(folder)):
        reason = files.damage(path) or files.stranger(path, run_id)
        if reason is None:
            return path, refused
        refused.append(Refused(path, reason))
    return None, refused


def retain(folder: Path, keep: int, run_id: str, protected: Iterable[int] = ()) -> None:
    """Remove all but the newest ``keep`` checkpoints of run ``run_id`` and ``protected`` steps.

    Damaged ones do not count among the kept: the last valid one is never removed. Those of
    other runs are not touched. Raises TrainingStopped where the disk does not allow it.
    """
    spared = set(protected)
    kept = 0
    for path in reversed(all_in(folder)):
        if files.stranger(path, run_id):
            continue
        if kept < keep and files.damage(path) is None:
            kept += 1
        elif step_of(path) not in spared:
            with files.writing(path):
                files.discard(path)


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of ``folder``, whole or not, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if _NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors with memory of their own: the file can be removed while they are in use."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _shapes(model: PeftModel) -> dict[str, torch.Size]:
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.shape for name, tensor in found.items()}


def _optimizer_parts(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its state as tensors (``INDEX/KEY``, deeper where it nests) and as JSON values: no pickle."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers = _without_tensors(state["state"], "", tensors)
    return tensors, {"state": numbers, "param_groups": state["param_groups"]}


def _without_tensors(
    values: Mapping[Any, Any], prefix: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """``values`` without its tensors, which go to ``tensors`` under their paths."""
    rest: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        elif isinstance(value, Mapping):
            rest[str(key)] = _without_tensors(value, f"{path}/", tensors)
        else:
            rest[str(key)] = value
    return rest


def _with_tensors(values: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of ``_without_tensors``."""
    for path, tensor in tensors.items():
        *parents, key = path.split("/")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = tensor
    return values
