"""Cross-entropy straight from hidden states: no logits but those of learned tokens, in tiles.

A causal language model ends in a linear head, after which some families scale the logits
(``s * z``) or cap them softly (``c * tanh(s * z / c)``, Gemma 2, arXiv:2408.00118). While the
head is frozen, the gradient with respect to its input is known as soon as a tile of logits is:
it is computed in the forward pass, and the tile is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.kernels.elementwise import Elementwise, loss_tile

TILE_BYTES = 32 * 2**20
"""Working memory of one tile. 32 to 64 MiB are fastest; 8 cost 1.4 times as much on a CPU."""
LEAST_ROWS = 80
"""Of a tile, however large the vocabulary: products of fewer rows cost a fifth more."""

LIFT = 1024.0
"""In float16, errors times this: what is below 6e-8 would be 0. Their sum is at most 2."""


class Head:
    """A frozen linear head: ``weight`` (vocabulary, width), ``bias`` (vocabulary,) or None.

    ``scale`` and ``cap`` are what the model does to the logits after it.
    """

    def __init__(self, module: nn.Linear, scale: float = 1.0, cap: float | None = None) -> None:
        self.module = module
        self.scale = scale
        self.cap = cap
        self.elementwise = Elementwise()
        """Whether softmax and gradient of a tile are compiled."""

    def summed_cross_entropy(self, hidden: Tensor, answers: Tensor) -> Tensor:
        """Sum over rows of -log softmax(logits)[answer]: a float32 scalar with its graph.

        ``hidden`` is (rows, width), ``answers`` (rows,) holds token ids. Products are computed
        in the dtype that autocast asks for, else in the head's own; the softmax in float32.
        The gradient goes to ``hidden`` alone, and once only (no second derivatives).
        """
        dtype = _compute_dtype(self.module.weight)
        loss: Tensor = _SummedCrossEntropy.apply(hidden, answers, self, dtype)  # type: ignore[no-untyped-call]
        return loss

    def products(self, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) in the dtype of ``hidden``, before scale and cap."""
        bias = self.module.bias
        given = None if bias is None else bias.to(hidden.dtype)
        return nn.functional.linear(hidden, self.module.weight.to(hidden.dtype), given)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, vocabulary) in float32, from products in the dtype of ``hidden``."""
        made = self.products(hidden).float()
        if self.scale != 1:
            made.mul_(self.scale)
        if self.cap is not None:
            made.div_(self.cap).tanh_().mul_(self.cap)
        return made

    def tile(
        self, hidden: Tensor, answers: Tensor, *, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The summed loss of some rows, and its gradient with respect to the products."""
        fused = self.elementwise.compiled.get(loss_tile)
        if fused is not None and wanted:
            losses, errors = fused(self.products(hidden), answers, self.scale, self.cap)
            return losses.sum(), errors
        logits = self.logits(hidden)
        normalizer = logits.logsumexp(1, keepdim=True)
        loss = (normalizer - logits.gather(1, answers[:, None])).sum()
        return loss, self.gradient(logits, answers, normalizer) if wanted else None

    def gradient(self, logits: Tensor, answers: Tensor, normalizer: Tensor) -> Tensor:
        """Of the summed loss with respect to the products; overwrites ``logits``.

        ``normalizer`` (rows, 1) is the log of the sum of the exponentials of each row.
        """
        slope = None if self.cap is None else 1 - (logits / self.cap).square_()
        errors = logits.sub_(normalizer).exp_()
        errors.scatter_add_(1, answers[:, None], errors.new_full((len(answers), 1), -1.0))
        if slope is not None:
            errors.mul_(slope)
        return errors if self.scale == 1 else errors.mul_(self.scale)


class _SummedCrossEntropy(torch.autograd.Function):
    """Loss and gradient tile by tile; nothing of a tile outlives it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, answers: Tensor, head: Head, dtype: torch.dtype
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        wide = torch.float32 if dtype == torch.float16 else hidden.dtype
        kept = torch.empty_like(hidden, dtype=wide) if wanted else None
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.module.weight.to(dtype)
            for rows in tiles(len(hidden), len(weight)):
                given = hidden[rows].to(dtype)
                loss, errors = head.tile(given, answers[rows], wanted=kept is not None)
                total += loss
                if kept is not None and errors is not None:
                    kept[rows] = _through(errors, weight)
        ctx.save_for_backward(kept)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (kept,) = ctx.saved_tensors
        return (kept * upstream).to(ctx.dtype), None, None, None


def _through(errors: Tensor, weight: Tensor) -> Tensor:
    """``errors`` (rows, vocabulary) times ``weight``, in its dtype; float32 for float16.

    The loss is scaled after this product, too late for what float16 has lost in it.
    """
    if weight.dtype != torch.float16:
        return errors.to(weight.dtype) @ weight
    return (errors.mul_(LIFT).half() @ weight).float().div_(LIFT)


def tiles(rows: int, vocabulary: int, size: int = TILE_BYTES) -> Iterator[slice]:
    """Slices of ``rows`` whose logits in float32 and in 16 bits take some ``size`` bytes."""
    height = tile_rows(vocabulary, size)
    return (slice(start, start + height) for start in range(0, rows, height))


def tile_rows(vocabulary: int, size: int = TILE_BYTES) -> int:
    """How many rows a tile has."""
    return max(LEAST_ROWS, size // (6 * vocabulary))


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
