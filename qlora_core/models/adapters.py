"""LoRA through PEFT: our own list of layers, verified after wrapping and after the first step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.models.adapter_checks import verify
from qlora_core.models.expert_adapters import is_read_elsewhere, tensor_at
from qlora_core.models.peft_keys import make_findable
from qlora_core.models.peft_names import as_asked, make_plain, make_portable
from qlora_core.models.quantizer import prepare_for_training
from qlora_core.models.selection import (
    Selection,
    join_excluded,
    namesakes,
    select_layers,
)
from qlora_core.registry.detect import detect
from qlora_core.registry.detection import Detection
from qlora_core.registry.targets import resolve_targets

log = logging.getLogger("qlora-core")


def lora_config(
    source: Detection | nn.Module,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all",
    rslora: bool = False,
    dora: bool = False,
) -> peft.LoraConfig:
    """The ``peft.LoraConfig`` that adapts the layers this family should adapt.

    ``alpha`` is ``2 * rank`` unless given. From a detection the names are those that the family
    states; a model is also asked whether it has them. In either case they are such as plain PEFT
    takes as they are: layers whose names it would take for experts are listed as parameters.
    Raises BadInput as ``select_layers`` does, for 4-bit expert stacks, and for matrices of
    experts that another module reads.
    """
    scope = targets if isinstance(targets, str) else ",".join(targets)
    if isinstance(source, Detection):
        stated = resolve_targets(source.architecture, scope)
        config = _config(stated, rank, alpha, dropout, rslora=rslora, dora=dora)
        plain = resolve_targets(source.architecture, scope, model_type=source.model_type)
        if plain.renamed:
            config.target_modules = set(plain.target_modules)
            config.target_parameters = plain.target_parameters or None
        return config
    architecture = detect(source).architecture
    chosen = select_layers(source, architecture, scope)
    config = _config(chosen, rank, alpha, dropout, rslora=rslora, dora=dora)
    _refuse_hidden(source, chosen)
    make_plain(config, chosen.modules, source, architecture)
    same = sorted(namesakes(source, chosen.target_modules))
    config.exclude_modules = join_excluded(chosen.exclude_modules, same)
    return config


def _refuse_hidden(model: nn.Module, chosen: Selection) -> None:
    for path in chosen.parameters:
        owner, _, name = path.rpartition(".")
        if is_read_elsewhere(model.get_submodule(owner), name):
            raise BadInput(
                f"plain PEFT would hide {path} from the module that reads it",
                "use qlora_core.attach in place of get_peft_model, or --targets all",
            )


def attach(
    model: Any,
    *,
    architecture: Architecture | None = None,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all",
    rslora: bool = False,
    dora: bool = False,
    gradient_checkpointing: bool = False,
) -> peft.PeftModel:
    """Freeze ``model`` and put float32 adapters on exactly the layers that ``targets`` means.

    Works on what ``load`` returns and on any transformers model. Takes the place of PEFT's
    ``prepare_model_for_kbit_training``, which casts embeddings, head and experts to float32.

    Raises BadInput for targets that cannot be adapted and for a model that carries adapters
    already, CheckFailed where PEFT wrapped other layers than were asked for.
    """
    if isinstance(model, peft.PeftModel) or any(isinstance(m, LoraLayer) for m in model.modules()):
        raise BadInput("this model carries adapters already", "load the base model afresh")
    scope = targets if isinstance(targets, str) else ",".join(targets)
    architecture = detect(model).architecture if architecture is None else architecture
    selection = select_layers(model, architecture, scope)
    config = _config(selection, rank, alpha, dropout, rslora=rslora, dora=dora)
    for notice in selection.notices:
        log.warning("%s\n  -> %s", notice.message, notice.remedy)
    _announce_experts(model, selection, rank)
    prepare_for_training(model)
    if gradient_checkpointing:
        enable_checkpointing(model)
    with warnings.catch_warnings():
        # PEFT sets it per layer, as it should, and warns each time that it did
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        # PEFT asks transformers by a name that transformers has since deprecated
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        with as_asked(model):
            wrapped = peft.get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    verify(wrapped, selection)
    make_portable(wrapped.peft_config["default"], selection.modules, model, architecture)
    make_findable(wrapped)
    return wrapped


def _announce_experts(model: nn.Module, selection: Selection, rank: int) -> None:
    """Say how many parameters the experts' adapters will have, before there are any."""
    shapes = [tensor_at(model, path).shape for path in selection.parameters]
    if shapes:
        count = sum(rank * torch.Size(shape[:-2]).numel() * sum(shape[-2:]) for shape in shapes)
        log.warning(
            "adapters on routed experts: %s parameters (rank %d, %d stacks)",
            f"{count:,}",
            rank,
            len(shapes),
        )


def enable_checkpointing(model: Any) -> None:
    """Recompute activations layer by layer in the backward pass (non-reentrant).

    Raises BadInput for the few classes that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise BadInput(f"{type(model).__name__} has no gradient checkpointing", "train without it")
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name in newer transformers
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def _config(
    chosen: Any, rank: int, alpha: float | None, dropout: float, *, rslora: bool, dora: bool
) -> peft.LoraConfig:
    if rank < 1:
        raise BadInput(f"rank {rank} is no rank", "use a whole number from 1 up, such as 16")
    if not 0 <= dropout < 1:
        raise BadInput(f"dropout {dropout} is no probability", "use a number from 0 to below 1")
    if chosen.target_parameters and (dropout or dora):
        what = "dropout" if dropout else "DoRA"
        raise BadInput(f"PEFT has no {what} for expert parameters", "leave it out")
    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=chosen.target_modules,
        target_parameters=chosen.target_parameters or None,
        exclude_modules=chosen.exclude_modules,
        use_rslora=rslora,
        use_dora=dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
