"""Write a model's weight files anew with some weights changed, one shard at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qlora_core.errors import CheckFailed
from qlora_core.models.checkpoint import require_whole_weights
from qlora_core.models.loader import LoadedModel
from qlora_core.models.merged_weights import Change
from qlora_core.registry.files import read_json

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which tensor of the checkpoint each changed weight is."""

    changes: Mapping[str, Change]
    """By name in the model."""
    tensors: Mapping[str, str]
    """Name in the checkpoint -> name in the model."""
    reason: str = ""
    """Why the checkpoint cannot be changed in place; empty where it can."""


def place(changed: Mapping[str, Change], loaded: LoadedModel) -> Placement:
    """Find every changed weight in the checkpoint, by its name and shape.

    A checkpoint may leave the base model's prefix out, or have it where the model has not.
    Where transformers renames or fuses tensors while loading, ``reason`` says so.
    """
    shapes = _shapes(loaded.folder)
    prefix = getattr(loaded.model, "base_model_prefix", "")
    tensors: dict[str, str] = {}
    for name, change in changed.items():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        found = next((one for one in candidates if one in shapes), None)
        if found is None:
            reason = f"the checkpoint keeps {name} under another name or in parts"
            return Placement(changes=changed, tensors={}, reason=reason)
        packed = f"{found}.absmax" in shapes
        if not packed and shapes[found] != change.shape:
            reason = f"the checkpoint keeps {name} as {shapes[found]}, not {change.shape}"
            return Placement(changes=changed, tensors={}, reason=reason)
        tensors[found] = name
    return Placement(changes=changed, tensors=tensors)


def write_shards(placement: Placement, loaded: LoadedModel, to: Path, *, original: bool) -> None:
    """Write each shard of the base with its changed weights to ``to``, then config and index.

    Holds at most one shard in 16 bits. Other tensors are written as they are; scales of 4-bit
    weights are left out, as these weights are 16-bit now.
    Raises CheckFailed where a merged weight is not finite in the checkpoint's dtype.
    """
    dtype = float_dtype(loaded.folder)
    weight_map: dict[str, str] = {}
    total = 0
    for file in require_whole_weights(loaded.folder):
        entries = _entries(file, placement, dtype)
        with safe_open(file, framework="pt") as shard, (to / file.name).open("wb") as out:
            out.write(_header(entries))
            for name in entries:
                value = _tensor(shard, name, placement, dtype, original=original)
                out.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        weight_map |= dict.fromkeys(entries, file.name)
        total += sum(entry["size"] for entry in entries.values())
    if (loaded.folder / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(to / INDEX, index)
    config = read_json(loaded.folder / "config.json")
    if config.pop("quantization_config", None):
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(to / "config.json", config)


def _entries(file: Path, placement: Placement, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and size of each tensor to write, the widest dtypes first (aligned)."""
    names = {torch_dtype: name for name, torch_dtype in FLOATS.items()}
    entries: dict[str, dict[str, Any]] = {}
    for name, stored in _stored(file).items():
        if _is_scale(name, placement.tensors):
            continue
        kind, shape = stored["dtype"], tuple(stored["shape"])
        size = stored["data_offsets"][1] - stored["data_offsets"][0]
        if name in placement.tensors:
            kind = kind if kind in FLOATS else names[dtype]
            shape = placement.changes[placement.tensors[name]].shape
            size = math.prod(shape) * FLOATS[kind].itemsize
        entries[name] = {"dtype": kind, "shape": shape, "size": size}
    return dict(sorted(entries.items(), key=lambda item: (-_width(item[1]), item[0])))


def _width(entry: Mapping[str, Any]) -> float:
    return float(entry["size"] / max(math.prod(entry["shape"]), 1))


def _header(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, then JSON padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + entry["size"]
        header[name] = {
            "dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored(file: Path) -> dict[str, dict[str, Any]]:
    with file.open("rb") as stream:
        entries: dict[str, dict[str, Any]] = json.loads(
            stream.read(int.from_bytes(stream.read(8), "little"))
        )
    entries.pop("__metadata__", None)
    return entries


@torch.no_grad()
def write_in_memory(placement: Placement, plain: Any, to: Path, *, original: bool) -> None:
    """Change the weights of the 16-bit model ``plain`` and save it as transformers does.

    transformers writes the names and parts of the original checkpoint again.
    """
    for name, change in placement.changes.items():
        parameter = plain.get_parameter(name)
        value = change.merged(parameter if original else None)
        parameter.copy_(_finite(value.to(parameter.dtype), name))
    plain.save_pretrained(to)


def float_dtype(folder: Path) -> torch.dtype:
    """The floating-point dtype that most tensors of the checkpoint have."""
    counted = Counter(
        entry["dtype"]
        for file in require_whole_weights(folder)
        for name, entry in _stored(file).items()
        if ".weight." not in name  # the scales of a 4-bit weight
    )
    known = {name: count for name, count in counted.items() if name in FLOATS}
    return FLOATS[max(known, key=lambda name: known[name])] if known else torch.bfloat16


def _tensor(
    shard: Any, name: str, placement: Placement, dtype: torch.dtype, *, original: bool
) -> torch.Tensor:
    stored: torch.Tensor = shard.get_tensor(name)
    if name not in placement.tensors:
        return stored
    merged = placement.changes[placement.tensors[name]].merged(stored if original else None)
    return _finite(merged.to(stored.dtype if stored.is_floating_point() else dtype), name)


def _finite(value: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(value).all():
        raise CheckFailed(
            f"the merged {name} is not finite in {value.dtype}",
            "the adapter broke down in training: take an earlier checkpoint",
        )
    return value


def _is_scale(name: str, changed: Mapping[str, str]) -> bool:
    owner, found, _ = name.partition(".weight.")
    return bool(found) and f"{owner}.weight" in changed


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(entry["shape"])
        for file in require_whole_weights(folder)
        for name, entry in _stored(file).items()
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """As the files beside a model are written."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
