"""What becomes 4-bit, and what must not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_core.facts.architecture import Architecture
from qlora_core.models.devices import choose_compute_dtype, choose_device
from qlora_core.models.names import heads
from qlora_core.registry.detection import Detection


def quantization_config(
    model: nn.Module | Detection | Architecture | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
    double_quantization: bool = True,
    quant_type: str = "nf4",
) -> BitsAndBytesConfig:
    """The settings of the QLoRA paper for transformers' ``from_pretrained``.

    4-bit NormalFloat, double quantization, compute dtype by hardware; the modules to skip are
    those of the family *and* those transformers keeps anyway (a list given to transformers
    replaces its own, and the output head would become 4-bit).

    ``model`` is a model or its skeleton on the meta device, a detection, a family, or None for
    transformers' own list.
    """
    if compute_dtype is None:
        compute_dtype = choose_compute_dtype(choose_device())
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=_skip_list(model),
    )


def _skip_list(model: nn.Module | Detection | Architecture | None) -> list[str] | None:
    if model is None:
        return None
    if isinstance(model, Architecture):
        return family_skips(model)
    if isinstance(model, Detection):
        from qlora_core.models.skeleton import build_skeleton

        names = [*family_skips(model.architecture), *library_skips(build_skeleton(model.config))]
    else:
        from qlora_core.registry.detect import detect

        names = [*family_skips(detect(model).architecture), *library_skips(model)]
    return list(dict.fromkeys(names))


def family_skips(architecture: Architecture) -> list[str]:
    """Names of the head and of what the family keeps unquantized."""
    return [*architecture.layout.head, *architecture.targets.keep_unquantized]


def library_skips(model: nn.Module) -> list[str]:
    """Names that transformers itself would not quantize: head, tied weights, float32 modules.

    A class may name a parameter (``classifier.weight``), which transformers compares with
    module names in vain; here the module is meant.
    """
    names = {name.removesuffix(".weight") for name in get_keys_to_not_convert(model)}
    return sorted((names - _shared_layers(model)) | float32_names(model))


def _shared_layers(model: nn.Module) -> set[str]:
    """Linear layers that share a weight with other linear layers, and with no embedding."""
    layers = {p for p, part in model.named_modules()
              if convertible(part) and part is not output_head(model)}  # fmt: skip
    found = set()
    for pair in model.all_tied_weights_keys.items():  # type: ignore[union-attr, operator]
        names = {name.removesuffix(".weight") for name in pair}
        found |= names if names <= layers else set()
    return found


def float32_names(model: nn.Module) -> set[str]:
    """Names of the modules that the class of ``model`` wants in float32."""
    lists = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    names = {name for attribute in lists for name in getattr(model, attribute, None) or ()}
    return {name.removesuffix(".weight") for name in names}


def kept_paths(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Paths of the modules that ``names`` mean: from the root where the model has such a module,
    and else as whole components anywhere.
    """
    paths = {path for path, _ in model.named_modules() if path}
    rooted = paths.intersection(names)
    loose = [name for name in names if name not in rooted]
    return {p for p in paths if is_within(p, loose) or not rooted.isdisjoint(heads(p))}


def is_within(path: str, names: Iterable[str]) -> bool:
    """Whether one of ``names`` stands in ``path`` as whole dotted components."""
    return any(f".{name}." in f".{path}." for name in names)


def convertible(module: nn.Module) -> bool:
    """Whether ``module`` computes what a 4-bit linear layer can compute.

    True for ``nn.Linear``, ``Conv1D`` (a linear layer with a transposed weight) and those
    subclasses of ``nn.Linear`` whose forward gives what ``F.linear`` gives.
    """
    if isinstance(module, Linear4bit) or hasattr(module, "parametrizations"):
        return False
    if isinstance(module, Conv1D):
        return True
    return isinstance(module, nn.Linear) and computes_linear(type(module))


def computes_linear(cls: type[nn.Linear]) -> bool:
    """Whether instances of ``cls`` compute ``F.linear``, found out by asking a tiny one."""
    kind: Any = cls
    return kind is nn.Linear or _tiny_one_computes_linear(kind)


@cache
def _tiny_one_computes_linear(cls: Any) -> bool:
    inputs = torch.linspace(-1, 1, 48, device="cpu", dtype=torch.float32).reshape(2, 3, 8)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        probe = cls.__new__(cls)
        nn.Linear.__init__(probe, 8, 4, device="cpu", dtype=torch.float32)
        try:
            output = probe(inputs)
        except Exception:  # whatever it needs, a plain linear layer does not need it
            return False
        expected = nn.functional.linear(inputs, probe.weight, probe.bias)
    return isinstance(output, torch.Tensor) and torch.allclose(output, expected, atol=1e-5)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that turns hidden states into logits, by identity: its name varies."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return find() if find is not None else None
