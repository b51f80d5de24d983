"""Names of saved tensors that plain PEFT finds again.

PEFT (from 0.19 on) treats the names in an adapter as names of an old checkpoint, and renames
them as transformers renames those. Some renamings also change names that are no old ones, and
PEFT then drops such tensors with a warning. Where an old name leads to the right tensor, the
file holds it under both; releases that rename take the one, those that do not the other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger("qlora-core")
WEIGHTS = "adapter_model.safetensors"
ALSO = "second names"
"""Key of the file's metadata: a JSON list of the names that repeat another tensor."""
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Spelling:
    """How the tensors of an adapter must be named for plain PEFT."""

    second: Mapping[str, str] = field(default_factory=dict)
    """Name -> another, by which PEFT finds the tensor."""
    lost: tuple[str, ...] = ()
    """Names that PEFT changes, and no other leads to their tensors."""


class TwiceNamed(peft.PeftModelForCausalLM):  # type: ignore[misc]  # PEFT ships no types
    """PEFT's model, whose saved file holds some tensors under two names."""

    spelling: Spelling

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As PEFT does it, then the second names."""
        super().save_pretrained(save_directory, *args, **kwargs)
        file = Path(save_directory) / WEIGHTS
        if file.is_file() and kwargs.get("is_main_process", True):
            tensors = load_file(file)
            save_tensors(file, tensors, repeated(self, tensors))


def spell(model: Any) -> Spelling:
    """What becomes of the adapter's names in ``model`` when the installed PEFT loads them."""
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    found = _loaded_as(model, tensors)
    changed = [name for name in tensors if found.get(name) != name]
    if not changed:
        return Spelling()
    candidates = {other: name for name in changed for other in _old_names(model, name)}
    loaded = _loaded_as(model, {other: tensors[name] for other, name in candidates.items()})
    second = {name: other for other, name in candidates.items() if loaded.get(other) == name}
    return Spelling(second, tuple(name for name in changed if name not in second))


def make_findable(model: Any) -> None:
    """Let ``model`` save names that PEFT finds again, and say which tensors it will not find."""
    spelling = spell(model)
    if spelling.second and type(model) is peft.PeftModelForCausalLM:
        model.__class__ = TwiceNamed
        model.spelling = spelling
    if spelling.lost:
        log.warning("%s", not_found(spelling.lost))


def lost_in_plain_peft(model: Any) -> list[str]:
    """Layers whose adapters plain PEFT drops when it loads what ``model`` saves."""
    return sorted({_layer(name) for name in spell(model).lost})


def not_found(names: Iterable[str]) -> str:
    """A sentence that says so, with the remedy."""
    layers = sorted({_layer(name) for name in names})
    return (
        f"plain PEFT {peft.__version__} takes the names of {len(layers)} adapted layers for those "
        f"of older checkpoints and will not load their adapters ({layers[0]}): use this adapter "
        "through qlora-core, or merged (`qlora-core merge`)"
    )


def repeated(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``tensors`` that must be saved a second time, under their second names."""
    second = model.spelling.second if isinstance(model, TwiceNamed) else {}
    return {second[name]: value for name, value in tensors.items() if name in second}


def save_tensors(file: Path, tensors: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` and, noted in the file as such, those that are saved ``again``."""
    noted = {ALSO: json.dumps(sorted(again))} if again else {}
    copies = {name: value.clone() for name, value in again.items()}
    save_file({**tensors, **copies}, file, metadata={"format": "pt", **noted})


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, each once, under its own name."""
    with safe_open(file, framework="pt") as opened:
        noted = (opened.metadata() or {}).get(ALSO, "[]")
    try:
        again = json.loads(noted)
    except (ValueError, RecursionError):  # nothing that we wrote
        again = []
    again = again if isinstance(again, list) else []
    return {name: value for name, value in load_file(file).items() if name not in again}


def _loaded_as(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> what PEFT makes of it; empty where it makes another tensor."""
    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers,
        )
    except ImportError:  # PEFT before 0.19 takes all names as they are
        return {name: name for name in tensors}
    config = model.peft_config[model.active_adapter]
    made = convert_peft_adapter_state_dict_for_transformers(model, config, dict(tensors))
    places = {id(value): name for name, value in made.items()}
    return {name: places.get(id(value), "") for name, value in tensors.items()}


def _old_names(model: Any, name: str) -> Iterator[str]:
    """What ``name`` may have been before one of transformers' renamings."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for renaming in get_model_conversion_mapping(model.get_base_model()):
        if isinstance(renaming, WeightRenaming):
            back = renaming.reverse_transform()
            old, _ = back.rename_source_key(name.removeprefix(_PREFIX))
            if _PREFIX + old != name:
                yield _PREFIX + old


def _layer(name: str) -> str:
    return name.removeprefix(_PREFIX).partition(".lora_")[0]
