"""Linear layers with LoRA as one function per input, in layers that are not computed by hand.

Which linear layers share an input is seen, not told: the decoder runs once and says which of them
were given the very same tensor. The first of such a group to be called computes all of them; the
others hand out what was computed. On anything but what was seen (evaluation with other adapters,
another order of calls) a layer goes through PEFT's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from qlora_core.kernels.dequantize import Workspace
from qlora_core.kernels.fast_layers import Autocast
from qlora_core.kernels.head_probe import LabelHead, Unfit, evaluating, refusing
from qlora_core.kernels.linears import Group, resident
from qlora_core.kernels.packing import two_samples

CLOSE = 2e-2
"""Of outputs to PEFT's own in 16 bits; another adapter, scale or order is far more."""


def install(base: Any, parts: LabelHead, autocast: Autocast, *, but: Collection[str]) -> int:
    """Replace the forward of adapted linear layers; how many. Raises Unfit where none fits.

    ``but`` holds the paths, in the decoder, of layers that are computed by hand already.
    """
    weights = resident(Workspace())
    with evaluating(base), torch.no_grad(), autocast():
        calls, before = _calls(base, parts, but)
        groups = [
            group for modules in _by_input(calls) for group in _fitting(modules, weights, calls)
        ]
    if not groups:
        raise Unfit("it has no linear layers with plain adapters that are called once")
    for modules, group in groups:
        _Shared(modules, group)
    try:
        with (
            refusing("its linear layers cannot be computed together"),
            evaluating(base), torch.enable_grad(), autocast(),
        ):  # fmt: skip
            _require_working(base, parts, before)
    except Unfit:
        for modules, _ in groups:
            for module in modules:
                del module.forward
        raise
    return sum(len(modules) for modules, _ in groups)


def _require_working(base: Any, parts: LabelHead, before: Tensor) -> None:
    """Forward and backward of the whole decoder, as in training."""
    after = parts.hidden_states(*two_samples(base))
    off = float((after - before).detach().float().norm() / before.float().norm().clamp_min(1e-12))
    if not off < CLOSE:
        raise Unfit(f"its hidden states change by {off:.1%}")
    wanted = [p for p in base.parameters() if p.requires_grad]
    torch.autograd.grad(after.float().sum(), wanted, allow_unused=True)


Call = tuple[nn.Module, Tensor, Tensor, Tensor]
"""A linear layer, its input by identity, copies of input and output: a model may change both."""


def _calls(base: Any, parts: LabelHead, but: Collection[str]) -> tuple[list[Call], Tensor]:
    """One forward pass: which adapted layers were called, in order; and the hidden states."""
    inside = {id(m) for path in but for m in parts.decoder.get_submodule(path).modules()}
    found: list[Call] = []

    def note(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(out, Tensor):
            found.append((module, given[0], given[0].clone(), out.clone()))

    layers = [m for m in base.modules() if isinstance(m, LoraLayer) and id(m) not in inside]
    with _hooked(layers, note):
        states = parts.hidden_states(*two_samples(base))
    return found, states


@contextmanager
def _hooked(modules: list[Any], note: Callable[..., None]) -> Iterator[None]:
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _by_input(calls: list[Call]) -> list[list[nn.Module]]:
    """Layers called once, those in a row with the same input together."""
    times: dict[int, int] = {}
    for module, *_ in calls:
        times[id(module)] = times.get(id(module), 0) + 1
    found: list[list[nn.Module]] = []
    before: Tensor | None = None
    for module, given, *_ in calls:
        if times[id(module)] > 1:
            before = None
        elif given is before:
            found[-1].append(module)
        else:
            found.append([module])
            before = given
    return found


def _fitting(
    modules: list[nn.Module], weights: Any, calls: list[Call]
) -> list[tuple[list[nn.Module], Group]]:
    """The group, proven on what the layers were given; apart where together does not work."""
    try:
        group = Group(modules, weights)
        _require_same(modules, group, calls)
    except Unfit:
        alone = [_fitting([m], weights, calls) for m in modules] if len(modules) > 1 else []
        return [one for found in alone for one in found]
    return [(modules, group)]


def _require_same(modules: list[nn.Module], group: Group, calls: list[Call]) -> None:
    seen = {id(module): (given, out) for module, _, given, out in calls}
    given = seen[id(modules[0])][0]
    ours = _computed(group, given)
    for module, made in zip(modules, ours, strict=True):
        own = seen[id(module)][1]
        off = float((made - own).float().norm() / own.float().norm().clamp_min(1e-12))
        if made.shape != own.shape or made.dtype != own.dtype or not off < CLOSE:
            raise Unfit(f"its linear layers differ from PEFT's by {off:.1%}")


def _computed(group: Group, x: Tensor) -> list[Tensor]:
    """The outputs of a group's layers in the dtype of ``x``: (..., outputs) each."""
    device = x.device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    flat = x.reshape(-1, x.shape[-1]).to(wanted)
    made: Tensor = _GroupFunction.apply(flat, group, *group.parameters)  # type: ignore[no-untyped-call]
    whole = made.view(*x.shape[:-1], -1).to(x.dtype)
    ends = list(accumulate(group.outputs))
    # slices, unlike parts of a split, may be changed in place
    return [whole[..., end - size : end] for end, size in zip(ends, group.outputs, strict=True)]


class _Shared:
    """The forward of a group's layers: computed by the first, handed out by the others."""

    def __init__(self, modules: list[Any], group: Group) -> None:
        self.group = group
        self.given: Tensor | None = None
        self.ready: dict[int, Tensor] = {}
        for place, module in enumerate(modules):
            module.forward = self._forward(place, module.forward)

    def _forward(self, place: int, own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
            if arguments or named or not self.group.is_as_read or not torch.is_grad_enabled():
                return own(x, *arguments, **named)
            if x is not self.given or place not in self.ready:
                self.given, self.ready = x, dict(enumerate(_computed(self.group, x)))
            made = self.ready.pop(place)
            if not self.ready:
                self.given = None
            return made

        return forward


class _GroupFunction(torch.autograd.Function):
    """A group's place in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, *_: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y, ctx.kept = group.forward(x)
        ctx.save_for_backward(x)
        ctx.group = group
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            dx, gradients = ctx.group.backward(
                upstream[0].contiguous(), x, ctx.kept, wanted=ctx.needs_input_grad[0]
            )
        return dx, None, *gradients
