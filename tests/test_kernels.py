"""The parts of a layer by hand: attention, elementwise functions, dequantized weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from qlora_core.kernels import elementwise as ew
from qlora_core.kernels.attention import Attention, Segment, plain_segments
from qlora_core.kernels.dequantize import Workspace, dense


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, attention: Attention
) -> torch.Tensor:
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * attention.scale
    if attention.cap is not None:
        scores = attention.cap * (scores / attention.cap).tanh()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


def window(size: int) -> Callable[[int, int], torch.Tensor]:
    def visible(start: int, stop: int) -> torch.Tensor:
        queries, keys = torch.arange(start, stop)[:, None], torch.arange(stop)[None]
        return (keys <= queries) & (keys > queries - size)

    return visible


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_attention_and_its_gradients_are_those_of_the_formula(
    heads: tuple[int, int], size: int | None, cap: float | None
) -> None:
    torch.manual_seed(0)
    bounds = [0, 1, 171, 300]
    visible = None if size is None else window(size)
    segments = [Segment(a, b, visible) for a, b in pairwise(bounds)]
    seen = torch.zeros(300, 300, dtype=torch.bool)
    for first, last in pairwise(bounds):
        seen[first:last, first:last] = window(size or last)(0, last - first)
    q, k, v = (torch.randn(300, h, 16, requires_grad=True) for h in (heads[0], *[heads[1]] * 2))
    attention = Attention(0.3, cap)
    error = torch.randn(q.shape)
    expected = reference(q, k, v, seen, attention)
    gradients = torch.autograd.grad(expected, (q, k, v), error)
    with torch.no_grad():
        torch.testing.assert_close(attention.forward(q, k, v, segments), expected)
        found = attention.backward(error, q, k, v, segments)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)


def test_attention_changes_nothing_that_it_is_given() -> None:
    q, k, v = (torch.randn(20, 2, 8) for _ in range(3))
    before = [part.clone() for part in (q, k, v)]
    Attention(0.3).backward(q, q, k, v, plain_segments([0, 20]))
    assert all(map(torch.equal, before, (q, k, v)))


ROWS = 700
WIDE = {
    ew.rms_norm: ((ROWS, 512), (1, 512)),
    ew.rotated: ((ROWS, 3, 128), (ROWS, 1, 96), (ROWS, 1, 96)),
    ew.gated_silu: ((ROWS, 512),),
    ew.gated_gelu: ((ROWS, 512),),
}


@pytest.mark.parametrize("function", WIDE, ids=lambda f: f.__name__)
def test_tiles_of_rows_give_what_the_whole_gives(function: ew.Function) -> None:
    arguments = [torch.randn(shape) for shape in WIDE[function]]
    more = [1e-6] if function is ew.rms_norm else []
    assert torch.equal(ew.by_rows(function, *arguments, *more), function(*arguments, *more))


@pytest.mark.parametrize(
    ("forward", "backward"),
    [(ew.gated_silu, ew.gated_silu_backward), (ew.gated_gelu, ew.gated_gelu_backward)],
)
def test_a_gated_activation_has_its_gradient(forward: ew.Function, backward: ew.Function) -> None:
    pair = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    error = torch.randn(5, 6, dtype=torch.float64)
    (expected,) = torch.autograd.grad(forward(pair), pair, error)
    torch.testing.assert_close(backward(error, pair.detach()), expected)


def test_a_norm_has_its_gradient_and_adds_what_comes_past_it() -> None:
    x, gain, error, past = torch.randn(5, 8), torch.randn(1, 8), torch.randn(5, 8), torch.ones(5, 8)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ew.rms_norm(leaf, gain, 1e-5), leaf, error)
    torch.testing.assert_close(ew.rms_norm_backward(error, x, gain, 1e-5), expected)
    added = ew.rms_norm_backward_added(error, x, past, gain, 1e-5)
    torch.testing.assert_close(added, expected + past)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_stacked_weights_are_those_of_bitsandbytes(
    dtype: torch.dtype, nested: bool, quant_type: str
) -> None:
    torch.manual_seed(0)
    bases = []
    for outputs in (6, 10):
        base = Linear4bit(
            192, outputs, bias=False, compress_statistics=nested, quant_type=quant_type
        )
        base.weight.data = torch.randn(outputs, 192).to(dtype)
        bases.append(base.to("cpu"))
    space = Workspace()
    expected = torch.cat([dequantize_4bit(b.weight.data, b.weight.quant_state) for b in bases])
    found = dense(bases, dtype, space)
    assert torch.equal(found, expected)
    again = dense(bases[:1], dtype, space)
    assert again.data_ptr() == found.data_ptr()  # the same memory


def test_the_weight_of_a_single_plain_layer_is_not_copied() -> None:
    plain = torch.nn.Linear(8, 4)
    assert dense([plain], torch.float32, Workspace()).data_ptr() == plain.weight.data_ptr()
