"""transformers' 4-bit quantizer, taught what it leaves in 16 bits: subclasses and experts.

transformers converts modules whose type is exactly ``nn.Linear`` (or ``Conv1D``). A family with
a subclass of its own, and the 3-D expert parameters of mixture-of-experts families, stay in
16 bits there, without a word. This quantizer reads the checkpoint through transformers' own
loader (weight converters, shards, device placement) and quantizes those too, one tensor at a
time. After loading the model looks like any 4-bit bitsandbytes model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize, replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

from qlora_core.errors import BadInput, MemoryRanOut, is_out_of_memory
from qlora_core.kernels import nf4
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.expert_loading import Parts, carrying, in_parts, unpacking
from qlora_core.models.names import hits
from qlora_core.models.on_access import dequantize_on_access
from qlora_core.models.quantization import (  # fmt: skip
    convertible,
    float32_names,
    is_within,
    kept_paths,
    library_skips,
)

METHOD = "qlora_core_4bit"


@register_quantization_config(METHOD)
class QloraConfig(BitsAndBytesConfig):  # type: ignore[misc]  # transformers ships no types
    """bitsandbytes' 4-bit settings, and the names of further parameters to quantize.

    ``expert_parameters`` become stacks, ``read_parameters`` are dequantized on access.
    """

    def __init__(
        self,
        expert_parameters: list[str] | None = None,
        read_parameters: list[str] | None = None,
        **settings: Any,
    ) -> None:
        for key in ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"):
            settings.pop(key, None)
        settings.pop("quant_method", None)
        super().__init__(load_in_4bit=True, **settings)
        self.expert_parameters = expert_parameters or []
        self.read_parameters = read_parameters or []
        self.quant_method = METHOD

    @classmethod
    def from_folder(
        cls, settings: Mapping[str, Any], dtype: torch.dtype, **parameters: list[str]
    ) -> QloraConfig:
        """The settings that a 4-bit folder's ``config.json`` states, computing in ``dtype``."""
        return cls(**{**settings, "bnb_4bit_compute_dtype": dtype, **parameters})

    def to_folder_dict(self) -> dict[str, Any]:
        """As a folder's config would state it, so that this quantizer is chosen for it.

        transformers takes its own quantizer wherever ``load_in_4bit`` stands.
        """
        settings: dict[str, Any] = self.to_dict()
        for key in ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"):
            settings.pop(key, None)
        return settings

    def plain(self) -> Any:
        """The settings as bitsandbytes alone knows them."""
        settings = self.to_dict()
        settings.pop("expert_parameters")
        settings.pop("read_parameters")
        settings["quant_method"] = QuantizationMethod.BITS_AND_BYTES
        return BitsAndBytesConfig.from_dict(settings)


@register_quantizer(METHOD)
class QloraQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]  # transformers ships no types
    """Quantizes while transformers loads."""

    def __deepcopy__(self, memo: Any) -> QloraQuantizer:
        """Itself: transformers copies the converters of a 4-bit folder once for every tensor."""
        return self

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        settings = self.quantization_config
        names = list(settings.llm_int8_skip_modules or ())
        if not (self.pre_quantized and names):
            names += library_skips(model)
        kept = kept_paths(model, names) | _unlike_linear(model)
        _make_plain(model, kept)
        replace_with_bnb_linear(
            model,
            # exact: transformers takes names as prefixes and suffixes, by rules that changed
            modules_to_not_convert=[f"{re.escape(path)}$" for path in sorted(kept)],
            quantization_config=settings,
            pre_quantized=self.pre_quantized,
        )
        settings.llm_int8_skip_modules = list(dict.fromkeys(names))
        self.float32 = float32_names(model)
        self.shapes = {path: weight.shape for path, weight in model.named_parameters()}
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Also true for the expert parameters that the family names."""
        return super().param_needs_quantization(model, param_name) or self._is_expert(param_name)

    def get_weight_conversions(self) -> list[Any]:
        """How the tensors of a 4-bit folder become parameters."""
        settings = self.quantization_config
        names = (*settings.expert_parameters, *settings.read_parameters)
        own = [unpacking(name, self) for name in names] if self.pre_quantized else []
        return [*own, *super().get_weight_conversions()]

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Of newer releases of transformers: experts come one by one where they are stored so."""
        names = [name for name, _ in model.named_parameters()]

        def is_packed(target: str) -> bool:
            found = [name for name in names if name.endswith(target)]
            return bool(found) and all(map(self._is_expert, found))

        usual = super().update_weight_conversions(weight_conversions, model)
        return [in_parts(conversion, is_packed) for conversion in usual]

    def get_quantize_ops(self) -> Bnb4bitQuantize:
        """The operation that turns one loaded tensor into its 4-bit form."""
        return _Quantize(self)

    def _is_expert(self, parameter: str) -> bool:
        settings = self.quantization_config
        names = (*settings.expert_parameters, *settings.read_parameters)
        return bool(hits([parameter], names)) and not is_within(parameter, self.float32)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        _require_shapes(model, self.shapes)
        stacks = [(p, w) for p, w in model.named_parameters() if hasattr(w, "expert_state")]
        for path, parameter in stacks:
            is_read = hits([path], self.quantization_config.read_parameters)
            (_let_read if is_read else _stack)(model, path, parameter)
        model.config.quantization_config = self.quantization_config.plain()
        kind = _Unsaved if stacks else Bnb4BitHfQuantizer
        model.hf_quantizer = kind(
            model.config.quantization_config, pre_quantized=self.pre_quantized
        )
        return super()._process_model_after_weight_loading(model)


class _Unsaved(Bnb4BitHfQuantizer):  # type: ignore[misc]  # transformers ships no types
    """For models with 4-bit expert stacks, which transformers cannot write back to files."""

    def is_serializable(self) -> bool:
        """Never: ``save_pretrained`` refuses (adapters and merged models are saved as ever)."""
        return False


class _Quantize(Bnb4bitQuantize):  # type: ignore[misc]  # transformers ships no types
    """Linear weights as transformers does; expert stacks as packed bytes that carry their state."""

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        try:
            for name, value in input_dict.items():
                result |= self._one(name, value, model=model, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise MemoryRanOut from error
            raise
        return result

    def _one(self, name: str, value: Any, *, model: Any, **kwargs: Any) -> dict[str, Any]:
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Linear4bit) and name.endswith(".weight"):
            return self._linear(name, value, module, model=model, **kwargs)
        if self.hf_quantizer.param_needs_quantization(model, name):
            return {name: self._pack(value[0] if isinstance(value, list) else value)}
        return {name: value}

    def _linear(
        self, name: str, value: Any, module: Linear4bit, *, model: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers does it, with the packed bytes already made where that is faster."""
        weight = value[0] if isinstance(value, list) else value
        made = model.get_parameter_or_buffer(name)
        usual = made.blocksize == nf4.BLOCK and made.quant_storage == torch.uint8
        if weight.device.type != "cpu" or not usual:
            return dict(super().convert({name: value}, model=model, **kwargs))
        if issubclass(module.source_cls, Conv1D):
            weight = weight.T
        packed, state = nf4.quantize(
            weight.contiguous(), quant_type=made.quant_type, nested=made.compress_statistics
        )
        known = {**made.__dict__, "quant_state": state, "bnb_quantized": True}
        module.quant_state, module._is_hf_initialized = state, True
        return {name: Params4bit(packed, requires_grad=False, **known)}

    def _pack(self, value: torch.Tensor | Parts) -> nn.Parameter:
        settings = self.hf_quantizer.quantization_config
        how: dict[str, Any] = {
            "quant_type": settings.bnb_4bit_quant_type,
            "nested": settings.bnb_4bit_use_double_quant,
        }
        if isinstance(value, Parts):
            packed, state = nf4.quantize_parts(value.pieces, value.shape, **how)
        else:
            packed, state = nf4.quantize(value.contiguous(), **how)
        return carrying(packed, state)


def _unlike_linear(model: nn.Module) -> set[str]:
    """Paths of subclasses of Linear that compute something else: 5.0 would convert them, too."""
    parts = model.named_modules()
    return {path for path, part in parts if isinstance(part, nn.Linear) and not convertible(part)}


def _make_plain(model: nn.Module, kept: set[str]) -> None:
    """Replace subclasses that compute ``F.linear`` by ``nn.Linear``, on the meta device."""
    for path, module in list(model.named_modules()):
        if path in kept or type(module) is nn.Linear or not isinstance(module, nn.Linear):
            continue
        if convertible(module):
            plain = nn.Linear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                device="meta",
                dtype=module.weight.dtype,
            )
            model.set_submodule(path, plain)


def _require_shapes(model: nn.Module, expected: Mapping[str, torch.Size]) -> None:
    """Raise BadInput for weights of another shape than the config's.

    transformers 5.0 does not compare shapes when a quantizer takes part in the load.
    """
    for path, weight in model.named_parameters():
        state = getattr(weight, "expert_state", None) or getattr(weight, "quant_state", None)
        shape = weight.shape if state is None else state.shape
        if tuple(shape) != tuple(expected.get(path, shape)):
            raise BadInput(
                f"{path} has the shape {tuple(shape)}, and config.json asks for "
                f"{tuple(expected[path])}",
                "config.json and the weight files must belong together: download both again",
            )


def _stack(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Put an ``ExpertStack`` in the place of a packed parameter.

    The eager forward passes of transformers index the stack by expert; its faster ones would
    take the whole of it.
    """
    owner_path, _, name = path.rpartition(".")
    owner: Any = model.get_submodule(owner_path)
    state = parameter.expert_state  # type: ignore[attr-defined]  # set by _pack
    delattr(owner, name)
    owner.add_module(name, ExpertStack(parameter.data, state))
    if hasattr(owner, "config"):
        owner.config._experts_implementation = "eager"


def _let_read(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Dequantize a packed parameter whenever code reads it."""
    owner, _, name = path.rpartition(".")
    state = parameter.expert_state  # type: ignore[attr-defined]  # set by _pack
    packed = nn.Parameter(parameter.data, requires_grad=False)
    dequantize_on_access(model.get_submodule(owner), name, packed, state)


def prepare_for_training(model: nn.Module) -> None:
    """Freeze the base and keep bitsandbytes from repacking 4-bit weights on CPUs.

    bitsandbytes repacks in place at the first evaluation on CPUs with AVX512-BF16; training
    after that computes with weights in another order.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
