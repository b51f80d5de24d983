"""Linear layers with one input and their LoRA adapters, forward and backward by hand.

``y = x W^T + b + s (drop(x) A^T) B^T`` for layers that take the same ``x``: their weights are
dequantized into one matrix and multiplied once, their A matrices are one, and nothing is kept
for the backward pass but ``x`` and the narrow ``x A^T``. The adapters stay PEFT's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from qlora_core.kernels.dequantize import Workspace, dense, shape_of
from qlora_core.kernels.head_probe import Unfit


@dataclass(frozen=True)
class Adapter:
    """The one adapter that PEFT trains on a linear layer, by reference."""

    a: nn.Parameter
    """(rank, inputs)"""
    b: nn.Parameter
    """(outputs, rank)"""
    scale: float
    dropout: nn.Module


class Member:
    """One linear layer as the model holds it: plain, or wrapped by PEFT."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        self.adapter = _adapter(module) if isinstance(module, LoraLayer) else None
        four_bit = isinstance(self.base, Linear4bit)
        if not isinstance(self.base, nn.Linear) or self.base.weight.is_floating_point() == four_bit:
            raise Unfit(f"a linear layer is a {type(self.base).__name__}")
        if self.base.weight.requires_grad or self.base._forward_hooks or module._forward_hooks:
            raise Unfit("a linear layer is trained, or carries hooks")
        if four_bit and getattr(self.base.weight, "quant_state", None) is None:
            raise Unfit("a linear layer is not quantized yet")
        self.outputs, self.inputs = shape_of(self.base)

    @property
    def is_as_read(self) -> bool:
        """Whether PEFT would still add this adapter, and only this one, to a frozen base."""
        if self.adapter is None:
            return True
        return not self.module.disable_adapters and not self.module.merged_adapters

    @property
    def drops(self) -> float:
        """The probability of dropout at this moment."""
        if self.adapter is None or not self.adapter.dropout.training:
            return 0.0
        return float(getattr(self.adapter.dropout, "p", 0.0))

    @property
    def scale(self) -> float:
        """Of the adapter's output, what dropout leaves being enlarged."""
        return 0.0 if self.adapter is None else self.adapter.scale / (1 - self.drops)


def _adapter(layer: Any) -> Adapter:
    if len(layer.active_adapters) != 1 or len(layer.lora_A) != 1:
        raise Unfit("not exactly one adapter is active")
    name = layer.active_adapters[0]
    if layer.lora_variant or name not in layer.lora_A:
        raise Unfit("its adapters are no plain LoRA")
    a, b, drop = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if type(a) is not nn.Linear or type(b) is not nn.Linear or b.bias is not None:
        raise Unfit("its adapters are no plain LoRA")
    if type(drop) not in (nn.Dropout, nn.Identity):
        raise Unfit(f"its dropout is a {type(drop).__name__}")
    if not (a.weight.requires_grad and b.weight.requires_grad):
        raise Unfit("its adapters are not trained")
    return Adapter(a.weight, b.weight, float(layer.scaling[name]), drop)


Weights = Callable[["Group", torch.dtype], Tensor]
"""``(group, dtype)`` -> its stacked base weights, valid until the next call. The one way to them:
what calls it never keeps what it got, so that they may come from elsewhere."""


def resident(space: Workspace) -> Weights:
    """Weights that lie in the model's own layers."""
    return lambda group, dtype: dense([member.base for member in group.members], dtype, space)


@dataclass
class Kept:
    """What a group's backward pass needs beside its input."""

    low: Tensor | None
    """(rows, sum of ranks): ``drop(x) A^T``"""
    random: Tensor | None
    """The generator's state before dropout."""


class Group:
    """Linear layers with the same input, in the order of their outputs."""

    def __init__(self, modules: Sequence[nn.Module], weights: Weights) -> None:
        self.members = [Member(module) for module in modules]
        self.weights = weights
        self.outputs = [member.outputs for member in self.members]
        self.inputs = self.members[0].inputs
        if any(member.inputs != self.inputs for member in self.members):
            raise Unfit("linear layers of one input differ in width")
        self.adapted = [(i, m.adapter) for i, m in enumerate(self.members) if m.adapter]
        ranks = [adapter.a.shape[0] for _, adapter in self.adapted]
        self.ranks = ranks
        biases = [member.base.bias for member in self.members]
        self.biased = any(bias is not None for bias in biases)

    @property
    def is_as_read(self) -> bool:
        """Whether every adapter is on, and none merged."""
        return all(member.is_as_read for member in self.members)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter, in the order of ``backward``'s gradients."""
        return [p for _, adapter in self.adapted for p in (adapter.a, adapter.b)]

    def forward(
        self, x: Tensor, *, added: Tensor | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, Kept]:
        """(rows, outputs) from (rows, inputs), plus ``added``; and what ``backward`` wants.

        With ``kept`` of an earlier call the same units are dropped.
        """
        low, random = self._low(x, None if kept is None else kept.random)
        weight = self.weights(self, x.dtype)
        if self.biased:
            bias = self._bias(x)
            added = bias.expand(len(x), -1) if added is None else added + bias
        y = x @ weight.t() if added is None else torch.addmm(added, x, weight.t())
        if low is not None:
            columns = torch.split(y, self.outputs, dim=1)
            for (at, adapter), narrow in zip(self.adapted, self._by_rank(low), strict=True):
                columns[at].addmm_(narrow, adapter.b.to(x.dtype).t(), alpha=self.members[at].scale)
        return y, Kept(low, random)

    def backward(
        self, upstream: Tensor, x: Tensor, kept: Kept, *, wanted: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of ``x`` (None unless ``wanted``) and of ``parameters``.

        ``kept`` is what ``forward`` gave with the same ``x``.
        """
        dx = upstream @ self.weights(self, x.dtype) if wanted else None
        if not self.adapted or kept.low is None:
            return dx, []
        columns = torch.split(upstream, self.outputs, dim=1)
        errors, found = torch.empty_like(kept.low), []
        narrow = zip(self._by_rank(kept.low), self._by_rank(errors), strict=True)
        for (at, adapter), (low, error) in zip(self.adapted, narrow, strict=True):
            scale = self.members[at].scale
            error.copy_(columns[at] @ adapter.b.to(x.dtype)).mul_(scale)
            found.append((columns[at].t() @ low).mul_(scale))
        a_gradients = self._spread(errors, x, kept.random, dx)
        pairs = zip(a_gradients, found, self.adapted, strict=True)
        return dx, [g.to(p.dtype) for a, b, (_, own) in pairs for g, p in ((a, own.a), (b, own.b))]

    def _spread(
        self, errors: Tensor, x: Tensor, random: Tensor | None, dx: Tensor | None
    ) -> list[Tensor]:
        """Through the A matrices: their gradients; what belongs to ``x`` is added to ``dx``."""
        if random is None:
            if dx is not None:
                dx.addmm_(errors, self._stacked(x.dtype))
            return list(torch.split(errors.t() @ x, self.ranks))
        found = []
        with _replayed(random):
            for (at, adapter), error in zip(self.adapted, self._by_rank(errors), strict=True):
                noise = _noise(x, self.members[at].drops)
                found.append(error.t() @ (x if noise is None else x * noise))
                if dx is not None:
                    own = error @ adapter.a.to(x.dtype)
                    dx += own if noise is None else own.mul_(noise)
        return found

    def _low(self, x: Tensor, random: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """``drop(x) A^T`` of all adapters, and the generator's state where it counts."""
        if not self.adapted:
            return None, None
        if not any(self.members[at].drops for at, _ in self.adapted):
            return x @ self._stacked(x.dtype).t(), None
        if random is not None:
            with _replayed(random):
                return self._low(x, None)[0], random
        random = torch.get_rng_state()
        parts = []
        for at, adapter in self.adapted:
            noise = _noise(x, self.members[at].drops)
            parts.append((x if noise is None else x * noise) @ adapter.a.to(x.dtype).t())
        return torch.cat(parts, dim=1), random

    def _stacked(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([adapter.a.detach().to(dtype) for _, adapter in self.adapted])

    def _by_rank(self, low: Tensor) -> Sequence[Tensor]:
        return torch.split(low, self.ranks, dim=1)

    def _bias(self, x: Tensor) -> Tensor:
        parts = [
            x.new_zeros(m.outputs) if m.base.bias is None else m.base.bias.detach().to(x.dtype)
            for m in self.members
        ]
        return torch.cat(parts)


def _noise(x: Tensor, probability: float) -> Tensor | None:
    """Zero where dropout drops, else one; drawn as ``torch.nn.functional.dropout`` draws it."""
    if not probability:
        return None
    return torch.empty_like(x).bernoulli_(1 - probability)


@contextmanager
def _replayed(state: Tensor) -> Iterator[None]:
    """Random numbers from ``state`` on; afterwards as if none had been drawn."""
    before = torch.get_rng_state()
    torch.set_rng_state(state)
    try:
        yield
    finally:
        torch.set_rng_state(before)
