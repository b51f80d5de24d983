"""LoRA on 4-bit expert stacks: PEFT's layers and files, computed for the tokens an expert gets.

PEFT adds an expert's adapter to its weight, which needs the whole stack dequantized (and breaks
on 4-bit ones). Here the same factors are applied to the tokens: an expert without tokens costs
nothing, and the numbers are those that PEFT computes on the 16-bit model, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from qlora_core.errors import BadInput
from qlora_core.kernels.experts import ExpertStack, Factors


class ExpertLora(ParamWrapper):  # type: ignore[misc]  # PEFT ships no types
    """PEFT's wrapper of an expert parameter, for one that is an ``ExpertStack``."""

    @property
    def stack(self) -> ExpertStack:
        """What it adapts."""
        found: ExpertStack = self.get_param()
        return found

    @contextmanager
    def _activate_lora(self, active_adapters: Sequence[str]) -> Iterator[None]:
        names = [name for name in active_adapters if name in self.lora_A]
        self.stack.factors = self._factors(names) if names else None
        try:
            yield
        finally:
            self.stack.factors = None

    def _factors(self, names: Sequence[str]) -> list[Factors]:
        """A pair per expert; several adapters side by side. Unbinding has a cheap gradient."""
        pairs = [self._pair(name) for name in names]
        left = torch.cat([pair[0] for pair in pairs], dim=2)
        right = torch.cat([pair[1] for pair in pairs], dim=1)
        return list(zip(left.unbind(0), right.unbind(0), strict=True))

    def _pair(self, name: str) -> Factors:
        """(experts, rows, rank) and (experts, rank, columns) of one adapter, from PEFT's layout.

        Which of the two is on the side of the inputs changed between PEFT's releases.
        """
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        a = a.view(self.num_experts, -1, a.shape[1])
        b = b.view(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        swapped = getattr(self, "_did_swap_in_out_features", False)
        left, right = (b, a) if swapped else (a.mT, b.mT)
        return self.scaling[name] * left, right

    def gradients(self, name: str = "default") -> torch.Tensor:
        """(experts,): the largest gradient in each expert's ``lora_B``; NaN where one is."""
        gradient = self.lora_B[name].weight.grad
        if gradient is None:
            return torch.zeros(self.num_experts)
        own = gradient.view(gradient.shape[0], -1, self.num_experts).abs()
        largest: torch.Tensor = own.flatten(0, 1).amax(0)
        return largest.cpu()

    def count(self) -> tuple[int, int, int]:
        """How many experts there are, saw a token since the last time, and have a gradient."""
        used = sorted(self.stack.used)
        learned = int((self.gradients()[used] != 0).sum())
        self.stack.used.clear()
        return self.num_experts, len(used), learned

    def merge(self, *_: Any, **__: Any) -> None:
        """Refused: a 4-bit stack cannot take up an adapter."""
        raise BadInput("4-bit experts cannot be merged in place", "use `qlora-core merge`")


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
