"""The weights that a merge changes, one at a time: the base's as it computes, plus the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import peft
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from qlora_core.errors import BadInput
from qlora_core.kernels.experts import ExpertStack

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One weight that a merged model has otherwise than the original base.

    ``module`` is the base's own module, ``parameter`` the weight's name in it.
    """

    module: nn.Module
    parameter: str = "weight"
    adapter: Any = None
    """PEFT's layer on it, if it has one."""

    @property
    def transposed(self) -> bool:
        """Whether the 16-bit model keeps the weight as (in, out): ``Conv1D``."""
        return isinstance(self.module, Linear4bit) and (
            getattr(self.module, "source_cls", None) is Conv1D
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape in the 16-bit model."""
        if not isinstance(self.module, Linear4bit):
            return tuple(getattr(self.module, self.parameter).shape)
        shape = tuple(self.module.weight.quant_state.shape)
        return shape[::-1] if self.transposed else shape

    @torch.no_grad()
    def merged(self, original: torch.Tensor | None) -> torch.Tensor:
        """The merged weight in float32 on the CPU, laid out as in the 16-bit model.

        ``original`` is the 16-bit weight to merge onto; None takes the base as it is loaded.
        """
        weight = self._loaded() if original is None else self._turned(original)
        weight = weight.to(device=self._device, dtype=torch.float32)
        if self.adapter is not None:
            weight = _adapted(weight, self.adapter)
        return self._turned(weight).cpu().contiguous()

    def _loaded(self) -> torch.Tensor:
        """The weight that the forward pass computes with, (out, in) where it is 4-bit."""
        if isinstance(self.module, Linear4bit):
            stored = self.module.weight
            weight: torch.Tensor = dequantize_4bit(stored.data, stored.quant_state)
            return weight
        value = getattr(self.module, self.parameter)
        if isinstance(value, ExpertStack):
            return value.whole().frozen()
        own: torch.Tensor = value.detach()
        return own

    def _turned(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T if self.transposed else weight

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def changes(wrapped: peft.PeftModel, *, dequantized: bool) -> dict[str, Change]:
    """Name in the 16-bit model -> change, for adapted weights and, ``dequantized``, 4-bit ones.

    Raises BadInput for adapters that are no plain LoRA, rsLoRA or DoRA on linear layers and
    expert stacks, and for an adapted head that shares its weight with the embeddings.
    """
    _refuse_unmergeable(wrapped)
    found: dict[str, Change] = {}
    model = wrapped.get_base_model()
    for path, module in model.named_modules():
        clean = path.replace(".base_layer", "")
        if isinstance(module, LoraLayer):
            name = getattr(module, "parameter_name", "weight")
            base = _innermost(module)
            found[f"{clean}.{name}"] = Change(module=base, parameter=name, adapter=module)
        elif dequantized:
            for name in _quantized(module):
                found.setdefault(f"{clean}.{name}", Change(module=module, parameter=name))
    return found


def _quantized(module: nn.Module) -> Iterator[str]:
    if isinstance(module, Linear4bit):
        yield "weight"
    yield from (name for name, part in module.named_children() if isinstance(part, ExpertStack))
    yield from getattr(module, "parametrizations", {})


def _innermost(layer: Any) -> nn.Module:
    base = layer.base_layer
    return _innermost(base) if isinstance(base, LoraLayer) else base


def _adapted(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """``W + scaling * B @ A`` in float32; DoRA rescales each output to its trained magnitude."""
    delta: torch.Tensor = layer.get_delta_weight(ADAPTER)
    weight = weight + delta.to(weight)
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if ADAPTER not in magnitudes:
        return weight
    inputs = 0 if getattr(layer, "fan_in_fan_out", False) else 1
    magnitude: torch.Tensor = magnitudes[ADAPTER].weight.to(weight) / weight.norm(dim=inputs)
    return weight * magnitude.unsqueeze(inputs)


def _refuse_unmergeable(wrapped: peft.PeftModel) -> None:
    config = wrapped.peft_config[ADAPTER]
    extras = {
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": getattr(config, "trainable_token_indices", None),
        "alora_invocation_tokens": getattr(config, "alora_invocation_tokens", None),
    }
    model = wrapped.get_base_model()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [_innermost(layer).weight for layer in layers if not hasattr(layer, "parameter_name")]
    if len({id(weight) for weight in weights}) < len(weights):
        raise BadInput(
            "the model uses one weight in several places, and each has an adapter of its own: "
            "they cannot be merged into the shared weight",
            "serve it unmerged",
        )
    if any(layer.lora_embedding_A for layer in layers):
        extras["LoRA on embeddings"] = True
    for name, used in extras.items():
        if used:
            raise BadInput(
                f"the adapter uses {name}, which cannot be merged here",
                "merge it with PEFT's merge_and_unload, or serve it unmerged",
            )
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and isinstance(model.get_output_embeddings(), LoraLayer):
        raise BadInput(
            "the adapter changes the output head, which shares its weight with the embeddings: "
            "merged, it would change those as well",
            "serve it unmerged, or train without the head",
        )
