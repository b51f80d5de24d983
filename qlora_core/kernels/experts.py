"""The weights of all experts of one layer in 4 bits, dequantized one expert at a time.

transformers keeps the experts of a layer in one parameter and computes with
``stack[expert]``. An ``ExpertStack`` takes the parameter's place: indexing it gives a value
that stands for the weight of one expert and is dequantized inside the matrix product, in the
forward pass and once more in the backward pass, so that never more than one expert is in
16 bits. Adapters are applied to the tokens that an expert is given, not to its weight.
A family may keep its experts one below another in a matrix, of which its code makes a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import Tensor, nn

Factors = tuple[Tensor, Tensor]
"""(rows, rank) and (rank, columns): their product is what an adapter adds to one expert."""


class RowFactors(NamedTuple):
    """Of experts one below another: each has rows of its own of ``left``, and all share ``right``.

    (experts * rows, rank) and (rank, columns).
    """

    left: Tensor
    right: Tensor

    def of(self, number: int, rows: int) -> Factors:
        """The pair of one expert, which has so many rows."""
        return self.left[number * rows : (number + 1) * rows], self.right


Adapter = Sequence[Factors] | RowFactors
"""What is added to the experts: a pair for each, or the factors of the matrix that they make."""


class ExpertStack(nn.Module):
    """Stands where the model had a parameter of shape (experts, rows, columns), or a matrix."""

    def __init__(self, packed: Tensor, state: QuantState) -> None:
        super().__init__()
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.state = state
        self.factors: Adapter | None = None
        """Of the adapter, while one is active."""
        self.experts = _experts(self.shape)
        """How many there are; of a matrix 1, until the model's code has taken it apart."""
        self.used: set[int] = set()
        """Numbers of the experts that were given tokens since this was last cleared."""

    @property
    def shape(self) -> torch.Size:
        """Of the parameter that it stands for."""
        return torch.Size(self.state.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the dequantized values."""
        dtype: torch.dtype = self.state.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the packed bytes lie."""
        return self.packed.device

    def whole(self) -> Weight:
        """All experts, as a value to compute with."""
        return Weight(self, tuple(self.shape), factors=self.factors)

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def view(self, *shape: Any) -> Weight:
        """As (experts, rows, columns), where the parameter keeps the experts one below another."""
        return self.whole().view(*shape)

    def transpose(self, first: int, second: int) -> Weight:
        """With rows and columns exchanged."""
        return self.whole().transpose(first, second)

    def __getitem__(self, number: Any) -> Weight | Tensor:
        return self.whole()[number]

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return Weight.__torch_function__(function, types, args, kwargs)

    @torch.no_grad()
    def dequantized(self, start: int, stop: int) -> Tensor:
        """The values from number ``start`` to ``stop`` of the flat parameter, without adapter.

        Whole blocks are dequantized and the ends cut off: an expert may begin inside a block.
        """
        state, size = self.state, self.state.blocksize
        if state.absmax.device != self.packed.device:
            state.to(self.packed.device)
        first, last = start // size, -(-stop // size)
        count = min(last * size, self.shape.numel()) - first * size
        part = QuantState(
            absmax=self._constants(first, last),
            shape=torch.Size([count]),
            dtype=state.dtype,
            blocksize=size,
            code=state.code,
            quant_type=state.quant_type,
        )
        packed = self.packed.view(-1, 1)[first * size // 2 : last * size // 2]
        values: Tensor = dequantize_4bit(packed, part).view(-1)
        return values[start - first * size : stop - first * size]

    def _constants(self, first: int, last: int) -> Tensor:
        """The float32 constants of some blocks; with double quantization they are 8-bit values."""
        state = self.state
        constants: Tensor = state.absmax[first:last]
        if not state.nested:
            return constants
        second = state.state2
        groups = torch.arange(first, last, device=constants.device) // second.blocksize
        found: Tensor = second.code[constants.int()] * second.absmax[groups] + state.offset
        return found


class PlainStack:
    """A parameter in 16 bits as a stack: nothing is dequantized, and one expert read at a time."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.experts = _experts(parameter.shape)
        self.used: set[int] = set()

    @property
    def shape(self) -> torch.Size:
        """Of the parameter."""
        return self.parameter.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameter."""
        return self.parameter.dtype

    def dequantized(self, start: int, stop: int) -> Tensor:
        """As of an ``ExpertStack``."""
        return self.parameter.detach().view(-1)[start:stop]


def _experts(shape: torch.Size) -> int:
    return shape[0] if len(shape) == 3 else 1


@dataclass(frozen=True, eq=False)
class Weight:
    """The weight of one expert (rows, columns), or of all, that exists only while it is used."""

    stack: ExpertStack | PlainStack
    stored: tuple[int, ...]
    """The shape as it is stored."""
    factors: Adapter | None = None
    """Of the adapter that it carries."""
    number: int = 0
    flipped: bool = False
    """Whether rows and columns are exchanged."""

    @property
    def shape(self) -> torch.Size:
        """As a tensor's."""
        *rest, rows, columns = self.stored
        return torch.Size([*rest, columns, rows] if self.flipped else self.stored)

    @property
    def T(self) -> Weight:  # noqa: N802  # as of a tensor
        """With rows and columns exchanged."""
        return replace(self, flipped=not self.flipped)

    def t(self) -> Weight:
        """As of a tensor."""
        return self.T

    def transpose(self, first: int, second: int) -> Weight:
        """As of a tensor, for the last two dimensions."""
        last = len(self.stored) - 1
        if {first % (last + 1), second % (last + 1)} != {last - 1, last}:
            raise NotImplementedError("only rows and columns of 4-bit experts can be exchanged")
        return self.T

    def view(self, *shape: Any) -> Weight:
        """Another shape of the same values; one dimension may be -1."""
        wanted = list(shape[0] if len(shape) == 1 else shape)
        if -1 in wanted:
            known = torch.Size([size for size in wanted if size != -1]).numel()
            wanted[wanted.index(-1)] = self.stack.shape.numel() // known
        if len(wanted) == 3:
            self.stack.experts = wanted[0]
        return replace(self, stored=tuple(wanted))

    def __getitem__(self, number: Any) -> Weight | Tensor:
        one = isinstance(number, int) or (isinstance(number, Tensor) and number.ndim == 0)
        if not one or len(self.stored) != 3:
            return self.dense()[number]
        return self.one(int(number))

    def one(self, number: int) -> Weight:
        """The weight of one expert."""
        return replace(self, stored=self.stored[1:], number=number)

    def __len__(self) -> int:
        return self.shape[0]

    def frozen(self) -> Tensor:
        """The dequantized values, without adapter."""
        length = torch.Size(self.stored).numel()
        start = self.number * length if len(self.stored) == 2 else 0
        values = self.stack.dequantized(start, start + length).view(self.stored)
        return values.mT if self.flipped else values

    def dense(self) -> Tensor:
        """The values as a tensor, adapter included: for what only a tensor can do."""
        if self.factors is None:
            return self.frozen()
        if len(self.stored) == 3:
            return torch.stack([self.one(number).dense() for number in range(len(self))])
        left, right = self._factors()
        return self.frozen() + (left @ right).to(self.stack.dtype)

    def applied(self, inputs: Tensor) -> Tensor:
        """``inputs`` (..., rows) times this weight, and what the adapter adds to that."""
        if len(self.stored) == 3:
            parts = [self.one(number).applied(part) for number, part in enumerate(inputs)]
            return torch.stack(parts)
        result: Tensor = _Product.apply(inputs.to(self.stack.dtype), self)  # type: ignore[no-untyped-call]  # torch's
        if self.factors is None:
            return result
        if inputs.numel():
            self.stack.used.add(self.number)
        left, right = self._factors()
        return result + (inputs.to(left.dtype) @ left @ right).to(result.dtype)

    def _factors(self) -> Factors:
        assert self.factors is not None
        if isinstance(self.factors, RowFactors):
            left, right = self.factors.of(self.number, self.stored[0])
        else:
            left, right = self.factors[self.number]
        return (right.mT, left.mT) if self.flipped else (left, right)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Products one expert at a time; everything else on the dequantized values."""
        own: list[Any] = [v.whole() if isinstance(v, ExpertStack) else v for v in args]
        if function in _PRODUCTS and isinstance(own[0], Tensor):
            return own[1].applied(own[0])
        known = dict(kwargs or {})
        if function is nn.functional.linear:
            return _linear(*own, **known)
        return function(*(v.dense() if isinstance(v, Weight) else v for v in own), **known)


def _linear(inputs: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    result = weight.T.applied(inputs)
    return result if bias is None else result + bias


_PRODUCTS = frozenset({torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm,
                       Tensor.__matmul__})  # fmt: skip


class _Product(torch.autograd.Function):
    """``inputs @ weight`` with a frozen weight that is dequantized again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        return inputs @ weight.frozen()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.weight.stack.dtype) @ ctx.weight.frozen().mT, None
