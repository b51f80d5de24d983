"""Build a model on the meta device: all of its shape, none of its memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_core.errors import BadInput, first_line
from qlora_core.facts.architecture import Architecture

_TEXT = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
_IMAGE = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
_NOT_FOR_SHAPE = ("model_type", "quantization_config", "auto_map", "dtype", "torch_dtype")
MAX_MODULES = 200_000
"""The largest published models have some 100,000, where every expert is a module of its own."""


def register_classes(architecture: Architecture) -> None:
    """Make the classes that a family brings itself known to transformers; again does no harm."""
    if architecture.register_classes is not None:
        architecture.register_classes()


def build_skeleton(
    config: Mapping[str, Any],
    *,
    device: str = "meta",
    folder: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model that ``config`` (the mapping of a ``config.json``) describes, on the meta device.

    A causal language model where transformers has one for the type, else the class for
    image and text. Takes seconds and no memory at any size; on another ``device`` it has
    random weights. Code that a ``folder`` brings (``auto_map``) is only run with
    ``trust_remote_code``.

    Raises BadInput for a type that transformers does not know or cannot generate text with,
    and for values that its classes refuse.
    """
    if trust_remote_code and folder is not None and config.get("auto_map"):
        return _remote(folder, device)
    model_type = str(config.get("model_type") or "(none)")
    if model_type not in CONFIG_MAPPING:
        raise _unknown(model_type, remote=bool(config.get("auto_map")))
    values = {key: value for key, value in config.items() if key not in _NOT_FOR_SHAPE}
    with _quiet(), _explained(model_type):
        parsed = completed(transformers.AutoConfig.for_model(model_type, **values))
        if type(parsed) not in _TEXT and type(parsed) not in _IMAGE:
            raise BadInput(
                f"transformers {transformers.__version__} has no text generator for "
                f"model_type {model_type!r}",
                "give the folder of a causal or an image-text language model",
            )
        return _from_config(parsed, device)


def installed_release() -> tuple[int, ...]:
    """The major and minor number of the installed transformers."""
    return tuple(map(int, transformers.__version__.split(".")[:2]))


def too_old_for(architecture: Architecture) -> bool:
    """Whether the installed transformers is older than the family's facts."""
    return installed_release() < tuple(map(int, architecture.since.split(".")))


def known_types() -> list[str]:
    """All model types that the installed transformers can build as text generators."""
    names = [
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ]
    return sorted(set(names))


def completed(config: Any) -> Any:
    """``config`` with the ``pad_token_id`` that some model classes of transformers 5.0 miss."""
    for part in (config, *vars(config).values()):
        if isinstance(part, transformers.PreTrainedConfig) and not hasattr(part, "pad_token_id"):
            part.pad_token_id = None
    return config


def _from_config(config: Any, device: str) -> nn.Module:
    text = type(config) in _TEXT
    part = own_part(config) if text else config
    auto = transformers.AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText
    build = auto.from_config if part is config else _TEXT[type(config)]._from_config
    with torch.device(device), _bounded():
        model: Any = build(part, attn_implementation="eager")
    model.tie_weights()  # older releases leave it out on the meta device
    return cast("nn.Module", model.eval())


def own_part(config: Any) -> Any:
    """The nested config that the class of this config's type is built from, where it is nested."""
    model_class = _TEXT.get(type(config), None)
    wanted = getattr(model_class, "config_class", None)
    parts = [part for part in vars(config).values() if type(part) is wanted]
    return parts[0] if wanted and type(config) is not wanted and len(parts) == 1 else config


def _remote(folder: str, device: str) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with _quiet(), torch.device(device):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=True
        )
    return model.eval()


def _unknown(model_type: str, *, remote: bool) -> BadInput:
    close = get_close_matches(model_type, known_types(), n=2, cutoff=0.7)
    remedies = ["check model_type in config.json", "update transformers"]
    if remote:
        remedies = [
            "the folder brings its own code (auto_map): read it, then --trust-remote-code HASH "
            "with --architecture NAME, a family of the same layers",
            "or take a checkpoint that transformers reads natively",
        ]
    return BadInput(
        f"transformers {transformers.__version__} does not know model_type {model_type!r}"
        + (f"; close: {', '.join(close)}" if close else ""),
        "; ".join(remedies) + "; or describe it with a plugin: `qlora-core plugins new`",
    )


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Stop a config whose numbers multiply (layers, experts) before it takes hours."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise BadInput(
                f"the config describes more than {MAX_MODULES:,} modules",
                "check its numbers of layers and experts against the model's card",
            )

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _explained(model_type: str) -> Iterator[None]:
    """Values of a config that transformers' classes refuse are bad input, not a traceback."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"transformers {transformers.__version__} cannot build this {model_type!r} config: "
            f"{type(error).__name__}: {first_line(error)}",
            "check config.json against the model's card",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on a model that is never run."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
