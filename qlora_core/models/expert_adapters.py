"""LoRA on 4-bit expert stacks: PEFT's layers and files, computed for the tokens an expert gets.

PEFT adds an expert's adapter to its weight, which needs the whole stack dequantized (and breaks
on 4-bit ones). Here the same factors are applied to the tokens: an expert without tokens costs
nothing, and the numbers are those that PEFT computes on the 16-bit model, up to rounding.

A family may keep its experts one below another in a matrix. That is one weight to PEFT: one
``lora_A`` for all experts, and of ``lora_B`` each expert has rows of its own. Where another
module than the owner reads such a matrix, PEFT's wrapper hides it; ours hands it out adapted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from qlora_core.errors import BadInput
from qlora_core.kernels.experts import (
    Adapter,
    ExpertStack,
    Factors,
    PlainStack,
    RowFactors,
    Weight,
)
from qlora_core.models.roles import linear_kind, reads_own


class ExpertLora(ParamWrapper):  # type: ignore[misc]  # PEFT ships no types
    """PEFT's wrapper of an expert parameter, for one that is an ``ExpertStack``."""

    @property
    def stack(self) -> ExpertStack | PlainStack:
        """What it adapts."""
        found: ExpertStack = self.get_param()
        return found

    def __getattr__(self, name: str) -> Any:
        """What other modules read of the wrapped one; the parameter comes with its adapter."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = super().__getattr__("base_layer")
            return self._adapted() if name == self.parameter_name else getattr(base, name)

    def _adapted(self) -> Weight:
        stack, names = self.stack, [] if self.merged else self._active()
        return Weight(stack, tuple(stack.shape), factors=self._factors(names))

    def _active(self) -> list[str]:
        usable = [] if self.disable_adapters else self.active_adapters
        return [name for name in usable if name in self.lora_A]

    def _activate_lora(self, active_adapters: Sequence[str]) -> AbstractContextManager[None]:
        return self._carrying(self._factors([n for n in active_adapters if n in self.lora_A]))

    @contextmanager
    def _carrying(self, factors: Adapter | None) -> Iterator[None]:
        stack: ExpertStack = self.get_param()
        stack.factors = factors
        try:
            yield
        finally:
            stack.factors = None

    def _factors(self, names: Sequence[str]) -> Adapter | None:
        """Several adapters side by side. Unbinding has a cheap gradient."""
        pairs = [self._pair(name) for name in names]
        if not pairs:
            return None
        left, right = pairs[0]
        if pairs[1:]:
            left = torch.cat([pair[0] for pair in pairs], dim=-1)
            right = torch.cat([pair[1] for pair in pairs], dim=-2)
        if left.ndim == 2:
            return RowFactors(left, right)
        return list(zip(left.unbind(0), right.unbind(0), strict=True))

    def _pair(self, name: str) -> Factors:
        """(experts, rows, rank) and (experts, rank, columns) of one adapter, from PEFT's layout.

        Which of the two is on the side of the inputs changed between PEFT's releases.
        Of a matrix (rows, rank) and (rank, columns).
        """
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        if len(self.stack.shape) == 2:
            return b, self.scaling[name] * a
        a = a.view(self.num_experts, -1, a.shape[1])
        b = b.view(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        swapped = getattr(self, "_did_swap_in_out_features", False)
        left, right = (b, a) if swapped else (a.mT, b.mT)
        return self.scaling[name] * left, right

    def gradients(self, name: str = "default") -> torch.Tensor:
        """(experts,): the largest gradient in each expert's ``lora_B``; NaN where one is."""
        gradient, experts = self.lora_B[name].weight.grad, self.stack.experts
        if gradient is None:
            return torch.zeros(experts)
        if len(self.stack.shape) == 2:
            own = gradient.view(experts, -1).T
        else:
            own = gradient.view(-1, experts)  # of each output and rank, the experts side by side
        largest: torch.Tensor = own.abs().amax(0)
        return largest.cpu()

    def count(self) -> tuple[int, int, int]:
        """How many experts there are, saw a token since the last time, and have a gradient."""
        used = sorted(self.stack.used)
        learned = int((self.gradients()[used] != 0).sum())
        self.stack.used.clear()
        return self.stack.experts, len(used), learned

    def merge(self, *_: Any, **__: Any) -> None:
        """Refused: a 4-bit stack cannot take up an adapter."""
        raise BadInput("4-bit experts cannot be merged in place", "use `qlora-core merge`")


class ReadLora(ExpertLora):
    """For a matrix of experts in 16 bits that only other modules read."""

    @property
    def stack(self) -> PlainStack:
        """The matrix; one expert of it is read at a time."""
        if "_stack" not in self.__dict__:
            self.__dict__["_stack"] = PlainStack(self.get_param())
        found: PlainStack = self.__dict__["_stack"]
        return found

    def _activate_lora(self, active_adapters: Sequence[str]) -> AbstractContextManager[None]:  # noqa: ARG002  # the name by which PEFT passes it
        return nullcontext()

    merge = ParamWrapper.merge


def is_read_elsewhere(owner: nn.Module, name: str) -> bool:
    """Whether ``name`` is a matrix of ``owner`` that its own code does not read."""
    kind: Any = type(owner)
    matrix = len(getattr(owner, name).shape) == 2
    return matrix and linear_kind(owner) is None and not reads_own(kind, name)


def expert_layers(model: nn.Module) -> Iterator[tuple[str, ExpertLora]]:
    """(path of the adapted parameter, layer), for every adapted 4-bit stack."""
    for path, layer in model.named_modules():
        if isinstance(layer, ExpertLora):
            yield f"{path.replace('.base_layer', '')}.{layer.parameter_name}", layer


def tensor_at(model: nn.Module, path: str) -> Any:
    """The parameter at ``path``, or the 4-bit stack that stands for it."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


@contextmanager
def as_parameters(model: nn.Module) -> Iterator[None]:
    """Let PEFT find 4-bit stacks under the names and shapes of the parameters they stand for.

    It matches and measures parameters, and nests its wrappers in their order. The stand-ins
    take no memory. What was adapted in the meantime is computed by ``ExpertLora`` afterwards.
    """
    stacks = [
        (owner, name, part)
        for owner in list(model.modules())
        for name, part in owner.named_children()
        if isinstance(part, ExpertStack)
    ]
    for owner, name, stack in stacks:
        delattr(owner, name)
        value = torch.empty((), dtype=stack.dtype, device=stack.device).expand(stack.shape)
        owner.register_parameter(name, nn.Parameter(value, requires_grad=False))
    try:
        yield
    finally:
        for owner, name, stack in stacks:
            delattr(owner, name)
            owner.add_module(name, stack)
        wrappers: list[Any] = [part for part in model.modules() if type(part) is ParamWrapper]
        for layer in wrappers:
            if isinstance(layer.get_param(), ExpertStack):
                layer.__class__ = ExpertLora
            elif is_read_elsewhere(layer.get_base_layer(), layer.parameter_name):
                layer.__class__ = ReadLora
