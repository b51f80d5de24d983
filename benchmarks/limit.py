"""How near to the machine's own limit: useful arithmetic over what its matrix products do.

The arithmetic of one step without recomputation: forward and backward of the frozen weights,
head and last layer's MLP on learned tokens alone, adapters, attention. The limit is that
arithmetic at the speed of one large bf16 product of the model's own sizes, measured between the
contestants in every round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.measuring import RANK
from benchmarks.models import Shape

GEMM_ROWS, GEMM_SECONDS = 1024, 0.5


def useful_operations(size: Shape, vocabulary: int, lengths: Sequence[int], learned: int) -> float:
    """Floating-point operations of one step on samples of ``lengths``, ``learned`` labels in all.

    4 per frozen weight and token: 2 forward, 2 for the gradient of the input. 6 per weight of an
    adapter, whose own gradient is wanted too. Causal attention: 2 products over half the square
    forward, twice that backward.
    """
    tokens = sum(lengths)
    trimmed = size.hidden**2 + 3 * size.hidden * size.inner  # o_proj and MLP of the last layer
    body = 4 * (size.layers * size.block * tokens - trimmed * (tokens - learned))
    head = 4 * size.hidden * vocabulary * learned
    adapters = 6 * _adapter(size) * size.layers * tokens
    attention = 3 * 2 * size.hidden * size.layers * sum(length**2 for length in lengths)
    return float(body + head + adapters + attention)


def _adapter(size: Shape) -> int:
    """Weights of one layer's adapters on its seven linear layers."""
    keys = size.hidden * size.shared // size.heads
    attention = 2 * 2 * size.hidden + 2 * (size.hidden + keys)
    return RANK * (attention + 3 * (size.hidden + size.inner))


def product_rate(size: Shape, device: torch.device) -> float:
    """Operations per second of a bf16 matrix product of this model's sizes, over half a second."""
    x = torch.randn(GEMM_ROWS, size.hidden, dtype=torch.bfloat16, device=device)
    w = torch.randn(size.inner, size.hidden, dtype=torch.bfloat16, device=device)
    torch.nn.functional.linear(x, w)
    began, count = _now(device), 0
    while (passed := _now(device) - began) < GEMM_SECONDS or not count:
        for _ in range(4):
            torch.nn.functional.linear(x, w)
        count += 4
    return 2 * GEMM_ROWS * w.numel() * count / passed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
