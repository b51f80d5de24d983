"""From a folder or a Hub id to a model in NF4 that says what of it is 4-bit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from qlora_core.errors import BadInput, MemoryRanOut, first_line, is_out_of_memory
from qlora_core.facts.architecture import Architecture
from qlora_core.models.checkpoint import (
    compare_quantization,
    fetch,
    quiet_loading,
    reading_not_mapping,
    refuse_other_quantization,
    require_all_weights,
    require_whole_weights,
)
from qlora_core.models.devices import choose_compute_dtype, choose_device
from qlora_core.models.quantization import family_skips
from qlora_core.models.quantization_report import QuantizationReport, count_quantized
from qlora_core.models.quantizer import QloraConfig, prepare_for_training
from qlora_core.models.remote_code import Trust, how_to_allow, require_trusted
from qlora_core.models.rotations import set_rotations
from qlora_core.models.skeleton import completed, own_part, register_classes
from qlora_core.registry.detect import detect, installed
from qlora_core.registry.detection import Detection
from qlora_core.registry.manager import Registry
from qlora_core.registry.targets import resolve_targets

log = logging.getLogger("qlora-core")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A frozen base model, ready for adapters, and all that was decided on the way."""

    model: Any
    """A transformers model that looks like any 4-bit bitsandbytes model."""
    detection: Detection
    folder: Path
    """Where its files lie: the folder given, or the Hub's cache."""
    device: torch.device
    compute_dtype: torch.dtype
    quantization: QuantizationReport
    unexpected: tuple[str, ...] = ()
    """Tensors of the checkpoint that the model has no place for."""


def load(
    path: str | Path,
    *,
    architecture: str | Architecture | None = None,
    compute_dtype: torch.dtype | None = None,
    device: str | None = None,
    quantize: str | None = "nf4",
    double_quantization: bool = True,
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
    registry: Registry | None = None,
) -> tuple[Any, Any]:
    """The model in 4-bit NormalFloat and its tokenizer, from a folder or a Hub id.

    The tokenizer is None, with a warning, where the folder has none.
    See ``load_model`` for the arguments and for what is raised.
    """
    loaded = load_model(
        path,
        architecture=architecture,
        compute_dtype=compute_dtype,
        device=device,
        quantize=quantize,
        double_quantization=double_quantization,
        attn_implementation=attn_implementation,
        revision=revision,
        offline=offline,
        trust_remote_code=trust_remote_code,
        registry=registry,
    )
    log.info("%s", loaded.quantization.summary())
    if not any((loaded.folder / name).is_file() for name in TOKENIZER_FILES):
        log.warning("%s has no tokenizer: None is returned in its place", path)
        return loaded.model, None
    from qlora_core.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(
        loaded.folder,
        loaded.detection.architecture,
        offline=offline,
        trust_remote_code=trust_remote_code,
        registry=registry,
    )
    return loaded.model, tokenizer


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json",
)  # fmt: skip


def load_model(
    path: str | Path,
    *,
    architecture: str | Architecture | None = None,
    compute_dtype: torch.dtype | None = None,
    device: str | None = None,
    quantize: str | None = "nf4",
    double_quantization: bool = True,
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
    registry: Registry | None = None,
) -> LoadedModel:
    """Load a base model frozen and quantized, and count what of it is 4-bit.

    ``quantize`` is ``nf4``, ``fp4`` or None (16 bits). A checkpoint that bitsandbytes made
    4-bit is loaded as it is. ``compute_dtype`` and ``device`` are chosen by the hardware.
    Embeddings, norms and the head stay in the compute dtype, never in float32 unless that is
    the compute dtype. Files ending in .bin are never opened.

    Raises BadInput for files that cannot be used (incomplete, quantized by another method,
    gated, ...) and CheckFailed where linear layers that should be 4-bit are not.
    """
    _check_choices(quantize, attn_implementation)
    registry = installed() if registry is None else registry
    detection = _detect(path, architecture, registry, revision=revision, offline=offline)
    register_classes(detection.architecture)
    pre_quantized = refuse_other_quantization(detection.config, detection.model)
    target = choose_device(device)
    dtype = choose_compute_dtype(target) if compute_dtype is None else compute_dtype
    folder = fetch(path, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    run_code = require_trusted(folder, trust_remote_code)
    require_whole_weights(folder)
    config = _read_config(folder, trust_remote_code=run_code)
    settings = _settings(detection.architecture, config, quantize, dtype, double_quantization)
    if pre_quantized:
        config.quantization_config, settings = settings.to_folder_dict(), None
    model, information = _read_weights(
        folder,
        detection.model,
        config=config,
        dtype=dtype,
        device_map={"": str(target)},
        quantization_config=settings,
        attn_implementation=attn_implementation,
        trust_remote_code=run_code,
    )
    unexpected = require_all_weights(information, detection.model)
    _name_origin(model, detection.model)
    report = _made_ready(model, detection.architecture, registry)
    return LoadedModel(
        model=model,
        detection=detection,
        folder=folder,
        device=target,
        compute_dtype=dtype,
        quantization=report,
        unexpected=unexpected,
    )


def _made_ready(model: Any, architecture: Architecture, registry: Registry) -> QuantizationReport:
    """Freeze, count what is 4-bit, and let the family and the plugins prepare the model."""
    prepare_for_training(model)
    report = count_quantized(model, architecture)
    report.require_complete()
    if architecture.prepare_model is not None:
        architecture.prepare_model(model)
    registry.prepare("qlora_prepare_model", model, architecture)
    return report


def _check_choices(quantize: str | None, attn_implementation: str | None) -> None:
    if quantize not in ("nf4", "fp4", None):
        raise BadInput(f"cannot quantize to {quantize!r}", "use nf4, fp4, or none for 16 bits")
    if attn_implementation and "/" in attn_implementation:
        raise BadInput(
            f"attention {attn_implementation!r} is a kernel to be downloaded and run",
            "use sdpa, eager or an installed flash attention",
        )


def _detect(
    path: str | Path, architecture: str | Architecture | None, registry: Registry, **where: Any
) -> Detection:
    if not isinstance(architecture, Architecture):
        return detect(path, architecture=architecture, registry=registry, **where)
    found = detect(path, registry=registry, **where)
    return dataclasses.replace(
        found,
        architecture=architecture,
        reason="given by the caller",
        provided_by="the caller",
        targets=resolve_targets(architecture, found.targets.scope, model_type=found.model_type),
    )


def _read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    try:
        return completed(
            AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
        )
    except (ValueError, KeyError, OSError) as error:
        if "trust_remote_code" in str(error):
            raise BadInput(
                f"{folder} brings Python code of its own, which runs only when you allow it",
                f"{how_to_allow(folder)}; or take a checkpoint that transformers reads natively",
            ) from None
        raise BadInput(
            f"transformers {transformers.__version__} cannot read the config of {folder}: "
            f"{first_line(error)}",
            "check config.json; a newer transformers may know this model type",
        ) from None


def _settings(
    architecture: Architecture, config: Any, quantize: str | None, dtype: torch.dtype, double: bool
) -> Any:
    stated = getattr(config, "quantization_config", None)
    read = architecture.targets.dequantize_on_access
    parameters = {
        "expert_parameters": list(architecture.targets.experts),
        "read_parameters": [*read, *(f"{layer}.weight" for layer in read)],
    }
    if stated is not None:
        settings = QloraConfig.from_folder(stated, dtype, **parameters)
        compare_quantization(settings.bnb_4bit_quant_type, quantize)
        return settings
    if quantize is None:
        return None
    return QloraConfig(
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=family_skips(architecture),
        **parameters,
    )


def _auto_class(config: Any) -> Any:
    """The causal language model class of this config, else the one that also reads images."""
    known = type(config) in AutoModelForCausalLM._model_mapping
    if known and own_part(config) is not config:
        return AutoModelForCausalLM._model_mapping[type(config)]
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return AutoModelForCausalLM if known or remote else AutoModelForImageTextToText


@contextmanager
def _clear_loading_errors(name: str) -> Iterator[None]:
    """BadInput in place of what transformers and safetensors raise for unusable files."""
    try:
        yield
    except MemoryRanOut as error:
        raise error.__cause__ or error from None
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise BadInput(
            f"{name} cannot be loaded: {type(error).__name__}: {first_line(error)}",
            "check that config.json and the weight files belong together; "
            "`qlora-core detect --build` shows what the config describes",
        ) from error


def _read_weights(folder: Path, name: str, *, config: Any, **settings: Any) -> Any:
    """The model and what transformers says of the tensors that it found, missed or left over."""
    with _clear_loading_errors(name), quiet_loading(), reading_not_mapping():
        model, found = _auto_class(config).from_pretrained(
            folder,
            config=own_part(config),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    set_rotations(model)
    return model, found


def _name_origin(model: Any, name: str) -> None:
    """Adapters will name as their base what the user gave, not a path in the cache."""
    model.name_or_path = name
    model.config._name_or_path = name
