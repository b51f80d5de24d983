"""Names that mean to PEFT what they say.

For some mixture-of-experts types PEFT (from 0.19 on) takes ``gate_proj`` and its like for the
routed experts that had these names in transformers 4, and adapts those in place of the shared
experts and dense layers that bear the names now (``peft/utils/transformers_weight_conversion``).
Here it takes names as they are while it injects; on disk such layers are listed as parameters
(``shared_experts.gate_proj.weight``), a form that no release touches. From it PEFT makes the
tensors that an adapter on the layer has, and on a base in 4 bits that very adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.expert_adapters import as_parameters
from qlora_core.models.quantization import convertible

log = logging.getLogger("qlora-core")
WEIGHT = ".weight"


@contextmanager
def as_asked(model: nn.Module) -> Iterator[None]:
    """While PEFT injects: names as they are, 4-bit expert stacks as parameters."""
    with as_parameters(model), _unconverted(_model_type(model)):
        yield


def rewritten_names(names: Iterable[str], model: nn.Module) -> list[str]:
    """Those of ``names`` that the installed PEFT does not take as they are for this model."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # PEFT before 0.19 takes all names as they are
        return []
    stand_in = SimpleNamespace(config=SimpleNamespace(model_type=_model_type(model)))
    lost = []
    for name in names:
        config = peft.LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=stand_in, conversions=None)
        except ValueError:  # one half of what it would fuse
            lost.append(name)
            continue
        if config.target_parameters or config.target_modules != {name}:
            lost.append(name)
    return lost


def taken_names(names: Iterable[str], model: nn.Module, architecture: Architecture) -> list[str]:
    """Those of ``names`` that some PEFT does not take as they are: the installed one, or, by the
    family's word, a later one, which may be the one that loads the adapter.
    """
    stated = architecture.targets.taken_for_experts.get(_model_type(model), ())
    names = list(names)
    rewritten = set(rewritten_names(names, model))
    return [name for name in names if name in rewritten or name.rpartition(".")[2] in stated]


def make_portable(
    config: peft.LoraConfig, modules: Iterable[str], model: nn.Module, architecture: Architecture
) -> None:
    """Say in ``config`` what was adapted so that plain PEFT adapts the same.

    ``modules`` are the paths of the adapted layers of ``model``, the base. Dropout, which PEFT
    does not have for parameters and only training needs, is left out where that takes effect.
    """
    names = config.target_modules
    lost = [] if isinstance(names, str) else taken_names(names, model, architecture)
    if not lost:
        return
    everything = [path.replace(".base_layer", "") for path, _ in model.named_parameters()]
    listed = set(config.target_parameters or ())
    for name in lost:
        meant = {path + WEIGHT for path in modules if is_suffix(name, path)}
        alone = meant == {path for path in everything if is_suffix(name + WEIGHT, path)}
        listed |= {name + WEIGHT} if alone else meant
    config.target_modules = set(names) - set(lost)
    config.target_parameters = sorted(listed)
    config.lora_dropout = 0.0


def make_plain(
    config: peft.LoraConfig, modules: Iterable[str], model: nn.Module, architecture: Architecture
) -> None:
    """As ``make_portable``, for plain PEFT on ``model`` itself.

    Dropout stays where PEFT has it, on layers in 4 bits; where it is left out, that is logged.
    Raises BadInput for 4-bit expert stacks.
    """
    stacks = [path for path, part in model.named_modules() if isinstance(part, ExpertStack)]
    asked = config.target_parameters or ()
    if any(is_suffix(name, path) for path in stacks for name in asked):
        raise BadInput(
            "plain PEFT cannot train adapters on 4-bit expert stacks (it skips or breaks them)",
            "use qlora_core.attach in place of get_peft_model, or --targets all",
        )
    dropout = config.lora_dropout
    make_portable(config, modules, model, architecture)
    if dropout == config.lora_dropout:
        return
    listed = [name.removesuffix(WEIGHT) for name in config.target_parameters or ()]
    if all(isinstance(model.get_submodule(path), Linear4bit)
           for path in modules if any(is_suffix(name, path) for name in listed)):  # fmt: skip
        config.lora_dropout = dropout
    else:
        log.warning("plain PEFT has no dropout for %s: left out", ", ".join(listed))


def as_modules(config: peft.LoraConfig, model: nn.Module) -> peft.LoraConfig:
    """``config`` with the layers that ``make_portable`` listed as parameters as layers again."""
    if isinstance(config.target_modules, str):
        return config
    linear = [path for path, module in model.named_modules() if adaptable(module)]
    listed = config.target_parameters or ()
    layers = {
        name.removesuffix(WEIGHT)
        for name in listed
        if name.endswith(WEIGHT)
        and any(is_suffix(name.removesuffix(WEIGHT), path) for path in linear)
    }
    if layers:
        config.target_modules = set(config.target_modules or ()) | layers
        config.target_parameters = sorted(n for n in listed if n.removesuffix(WEIGHT) not in layers)
    return config


@torch.no_grad()
def fill(model: peft.PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy a saved adapter's values into ``model``, each under the name it was saved by.

    ``set_peft_model_state_dict`` renames some as if they were weights of an old checkpoint,
    and then drops them. Raises KeyError for a name that ``model`` does not have.
    """
    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, value in tensors.items():
        own[name].copy_(value)


def adaptable(module: nn.Module) -> bool:
    """Whether a LoRA adapter can stand beside ``module``: linear layers of every storage."""
    return isinstance(module, Linear4bit | Linear8bitLt) or convertible(module)


def is_suffix(name: str, path: str) -> bool:
    """PEFT's rule for lists: ``name`` is ``path`` or a dotted suffix of it."""
    return f".{path}".endswith(f".{name}")


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


@contextmanager
def _unconverted(model_type: str) -> Iterator[None]:
    """Take the type out of PEFT's table of those whose names it converts."""
    table: Any = {}
    with suppress(ImportError):
        from peft.utils import transformers_weight_conversion

        table = getattr(transformers_weight_conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    entry: Mapping[str, Any] = {model_type: table.pop(model_type)} if model_type in table else {}
    try:
        yield
    finally:
        table.update(entry)
