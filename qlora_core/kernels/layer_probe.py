"""Read a decoder layer's shape off its parts; prove it against the layer's own forward.

Nothing is told by a family's name: parts are found by the names that transformers gives to
projections, and what they compute is measured. A copy of the layer in float32 then says, on
random input, whether ours gives the same output and the same gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from qlora_core.kernels import elementwise as ew
from qlora_core.kernels.attention import Attention
from qlora_core.kernels.dequantize import Workspace
from qlora_core.kernels.elementwise import Elementwise, Function
from qlora_core.kernels.head_probe import Unfit
from qlora_core.kernels.layer import Layer
from qlora_core.kernels.layer_state import Norm, Row
from qlora_core.kernels.linears import Group, Weights, resident

TOLERANCE = 1e-3
"""Relative, in float32: rounding leaves some 1e-6, a wrong formula far more."""
_ACTIVATIONS: list[tuple[Callable[[Tensor], Tensor], tuple[Function, Function]]] = [
    (functional.silu, (ew.gated_silu, ew.gated_silu_backward)),
    (
        lambda x: functional.gelu(x, approximate="tanh"),
        (ew.gated_gelu, ew.gated_gelu_backward),
    ),
]


def read_layer(module: nn.Module, weights: Weights, elementwise: Elementwise) -> Layer:
    """The parts of a decoder layer. Raises Unfit where they are not those of ``Layer``."""
    attention, mlp, norms = _parts(module)
    groups = {name: Group(members, weights) for name, members in linears_of(module).items()}
    first, second, third, fourth = norms if len(norms) == 4 else (norms[0], None, norms[1], None)
    head_width = getattr(attention, "head_dim", None)
    if not isinstance(head_width, int):
        raise Unfit("its attention does not say how wide a head is")
    return Layer(
        qkv=groups["qkv"], o=groups["o"], gate_up=groups["gate_up"], down=groups["down"],
        before_attention=_norm(first), after_attention=_norm(second) if second else None,
        before_mlp=_norm(third), after_mlp=_norm(fourth) if fourth else None,
        q_norm=_head_norm(attention, "q_norm", head_width),
        k_norm=_head_norm(attention, "k_norm", head_width),
        attention=Attention(
            float(getattr(attention, "scaling", None) or head_width**-0.5),
            getattr(attention, "attn_logit_softcapping", None),
        ),
        head_width=head_width,
        activation=_activation(mlp),
        elementwise=elementwise,
    )  # fmt: skip


def linears_of(module: nn.Module) -> dict[str, list[Any]]:
    """The linear layers of each group of a ``Layer``, by the group's name.

    No weight is touched: a skeleton will do. Raises Unfit where its parts already rule it out.
    """
    attention, mlp, _ = _parts(module)
    _require_no_dropout(attention)
    _activation(mlp)
    return {
        "qkv": _named(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj")),
        "o": _named(attention, ("o_proj",)),
        "gate_up": _named(mlp, ("gate_up_proj",), ("gate_proj", "up_proj")),
        "down": _named(mlp, ("down_proj",)),
    }


def prove(module: nn.Module, row: Row, given: dict[str, Any]) -> None:
    """Raise Unfit unless the layer read off ``module`` computes as ``module`` itself does.

    ``given`` is what the decoder passes to ``module`` beside the hidden states of ``row``.
    """
    twin = _twin(module)
    tokens = row.cos.shape[0]
    drawn = torch.Generator().manual_seed(2)
    layer = read_layer(twin, resident(Workspace()), Elementwise())
    x = torch.randn(1, tokens, layer.qkv.inputs, generator=drawn)
    error = torch.randn(x.shape, generator=drawn)
    own_inputs = {name: _wide(value) for name, value in given.items()}
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        own = _computed(lambda h: twin(h, **own_inputs), x, error, layer.parameters)
        wide = Row(row.segments, row.cos.float(), row.sin.float())
        ours = _computed(lambda h: layer(h[0], wide)[None], x, error, layer.parameters)
    for mine, theirs in zip(ours, own, strict=True):
        off = float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if not off < TOLERANCE:
            raise Unfit(f"computed by hand its layers differ from their own by {off:.1%}")


def signature(module: nn.Module) -> tuple[Any, ...]:
    """Layers alike in this compute alike: classes, numbers and switches of all their parts."""
    parts = []
    for path, part in module.named_modules():
        if "lora_" in path:
            continue
        simple = sorted(
            (name, repr(value))
            for name, value in vars(part).items()
            if isinstance(value, bool | int | float | str | None) and name != "layer_idx"
        )
        shapes = [(n, tuple(p.shape)) for n, p in part.named_parameters(recurse=False)]
        parts.append((path, type(part), tuple(simple), tuple(shapes)))
    return tuple(parts)


def _parts(module: nn.Module) -> tuple[Any, Any, list[nn.Module]]:
    """Attention, MLP and the norms in the order in which they are applied."""
    attention = mlp = None
    norms = []
    for name, part in module.named_children():
        if hasattr(part, "o_proj"):
            attention = part
        elif hasattr(part, "down_proj"):
            mlp = part
        elif [p.dim() for p in part.parameters()] == [1]:
            norms.append(part)
        elif any(True for _ in part.parameters()) or getattr(part, "p", None):
            raise Unfit(f"its layers have a part that is not known: {name}")
    if attention is None or mlp is None or len(norms) not in (2, 4):
        raise Unfit("its layers are not made of attention, a gated MLP and two or four norms")
    known = {"qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm",
             "gate_up_proj", "gate_proj", "up_proj", "down_proj"}  # fmt: skip
    for owner in (module, attention, mlp):
        if any(True for _ in owner.named_parameters(recurse=False)):
            raise Unfit("its layers have parameters outside their parts")
    for owner in (attention, mlp):
        for name, part in owner.named_children():
            if name not in known and any(True for _ in part.parameters()):
                raise Unfit(f"its layers have a part that is not known: {name}")
    return attention, mlp, norms


def _named(owner: Any, *choices: tuple[str, ...]) -> list[Any]:
    for names in choices:
        if all(hasattr(owner, name) for name in names):
            return [getattr(owner, name) for name in names]
    raise Unfit(f"its layers have no {' or '.join('/'.join(names) for names in choices)}")


def _require_no_dropout(attention: Any) -> None:
    for name in ("attention_dropout", "dropout"):
        share = getattr(attention, name, 0.0)
        if isinstance(share, float) and share:
            raise Unfit("its attention has dropout")


def _norm(module: Any) -> Norm:
    weight = module.weight
    if weight.requires_grad:
        raise Unfit("its norms are trained")
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(epsilon, float):
        raise Unfit("its norms do not say their epsilon")
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        own = module(x).float()
        for gain in (weight.detach().float()[None], 1 + weight.detach().float()[None]):
            if torch.allclose(ew.rms_norm(x, gain, epsilon), own, rtol=1e-4, atol=1e-5):
                return Norm(gain, epsilon)
    raise Unfit("its norms are no root-mean-square norms")


def _head_norm(attention: Any, name: str, width: int) -> Norm | None:
    module = getattr(attention, name, None)
    if module is None:
        return None
    norm = _norm(module)
    if norm.gain.shape[1] != width:
        raise Unfit("its norms of queries and keys go over more than a head")
    return norm


def _activation(mlp: Any) -> tuple[Function, Function]:
    names = ("act_fn", "activation_fn", "act")
    own: Any = next((f for name in names if callable(f := getattr(mlp, name, None))), None)
    grid = torch.linspace(-6, 6, 97)
    for known, functions in _ACTIVATIONS:
        if own is not None and torch.allclose(own(grid), known(grid), rtol=1e-4, atol=1e-5):
            return functions
    raise Unfit("its activation is not known")


def _twin(module: nn.Module) -> nn.Module:
    """A copy in float32 with adapters that are nowhere zero, without dropout."""
    twin = copy.deepcopy(module).eval()
    twin.__dict__.pop("forward", None)
    drawn = torch.Generator().manual_seed(1)
    for part in twin.modules():
        if isinstance(part, Linear4bit):
            part.compute_dtype = torch.float32
            part.compute_type_is_set = True
            part.weight.quant_state.dtype = torch.float32
        if isinstance(part, LoraLayer):
            for weights in (part.lora_A, part.lora_B):
                for matrix in weights.values():
                    spread = matrix.weight.shape[1] ** -0.5
                    values = torch.randn(matrix.weight.shape, generator=drawn) * spread
                    matrix.weight.data = values.to(matrix.weight)
    for parameter in twin.parameters():
        if parameter.is_floating_point() and not isinstance(parameter, Params4bit):
            parameter.data = parameter.data.float()
    return twin


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, tuple):
        return tuple(_wide(part) for part in value)
    return value


def _computed(
    forward: Callable[[Tensor], Any], x: Tensor, error: Tensor, parameters: list[nn.Parameter]
) -> list[Tensor]:
    """Output and gradients of input and parameters, by autograd."""
    leaf = x.clone().requires_grad_()
    out = forward(leaf)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise Unfit("its layers do not give hidden states alone")
    return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], error)]
