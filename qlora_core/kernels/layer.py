"""One decoder layer, forward and backward by hand, on samples that lie one after the other.

    x -> norm -> q, k, v -> [norm of heads] -> rotation -> attention -> o -> [norm] -> + x
      -> norm -> gate, up -> activation -> down -> [norm] -> + what it started from

A layer is one unit of the graph: nothing inside is seen by autograd, and nothing outside holds a
weight. It asks for its frozen matrices through one call (``linears.Weights``) whenever it needs
one, keeps as much of its forward pass as it was told to, and computes the rest again. The
gradients are those of PEFT's own parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.kernels import elementwise as ew
from qlora_core.kernels.attention import Attention
from qlora_core.kernels.elementwise import Elementwise, Function
from qlora_core.kernels.layer_state import Keep, Norm, Row, Saved
from qlora_core.kernels.linears import Group


@dataclass
class Layer:
    """The parts of one decoder layer, and how they are put together."""

    qkv: Group
    o: Group
    gate_up: Group
    down: Group
    before_attention: Norm
    before_mlp: Norm
    attention: Attention
    head_width: int
    activation: tuple[Function, Function]
    elementwise: Elementwise
    after_attention: Norm | None = None
    after_mlp: Norm | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    keep: Keep = Keep.ALL

    @property
    def groups(self) -> dict[str, Group]:
        """Its groups of linear layers by name."""
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All adapters' matrices, group by group."""
        return [p for group in self.groups.values() for p in group.parameters]

    @property
    def drops(self) -> bool:
        """Whether dropout draws numbers for it at this moment."""
        return any(m.drops for group in self.groups.values() for m in group.members)

    def kept_per_token(self, keep: Keep) -> int:
        """Values that a forward pass leaves behind for each token when it keeps ``keep``."""
        hidden = self.qkv.inputs
        both = (self.after_attention is not None) + 1
        kept = hidden
        if keep >= Keep.MOST:
            kept += sum(self.qkv.outputs) + self.o.inputs + both * hidden
        if keep == Keep.ALL:
            kept += sum(self.gate_up.outputs) + (both - 1) * hidden
        return kept + sum(rank for group in self.groups.values() for rank in group.ranks)

    def __call__(self, x: Tensor, row: Row) -> Tensor:
        """(tokens, hidden) -> (wanted tokens, hidden), with its place in the graph."""
        made: Tensor = _LayerFunction.apply(x, self, row, *self.parameters)  # type: ignore[no-untyped-call]
        return made

    def forward(self, x: Tensor, row: Row) -> tuple[Tensor, Saved]:
        """The output, and everything that ``backward`` may be spared to compute again."""
        saved = Saved()
        self._attend(x, row, saved)
        self._widen(saved)
        return self._narrow(saved), saved

    def _attend(self, x: Tensor, row: Row, saved: Saved) -> None:
        """Fill ``saved`` up to ``middle``."""
        normal = self._norm(x, self.before_attention)
        saved.qkv = self._linear("qkv", normal, saved)
        del normal
        saved.attended = self.attention.forward(*self._heads(saved.qkv, row), row.segments)
        attended, x = _only(row, saved.attended.flatten(1)), _only(row, x)
        if self.after_attention is None:
            saved.middle = self._linear("o", attended, saved, added=x)
            return
        saved.projected = self._linear("o", attended, saved)
        saved.middle = x + self._norm(saved.projected, self.after_attention)

    def _widen(self, saved: Saved) -> None:
        """Fill ``saved.pair``."""
        assert saved.middle is not None
        normal = self._norm(saved.middle, self.before_mlp)
        saved.pair = self._linear("gate_up", normal, saved)

    def _narrow(self, saved: Saved) -> Tensor:
        assert saved.pair is not None
        assert saved.middle is not None
        inner = self.elementwise(self.activation[0], saved.pair)
        if self.after_mlp is None:
            return self._linear("down", inner, saved, added=saved.middle)
        saved.mapped = self._linear("down", inner, saved)
        return saved.middle + self._norm(saved.mapped, self.after_mlp)

    def backward(
        self, upstream: Tensor, x: Tensor, row: Row, saved: Saved, *, wanted: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of ``x`` (None unless ``wanted``) and of ``parameters``; empties ``saved``."""
        if saved.middle is None:
            self._attend(x, row, saved)
        if saved.pair is None:
            self._widen(saved)
        if self.after_mlp is not None and saved.mapped is None:
            self._narrow(saved)
        found: dict[str, list[Tensor]] = {}
        d_middle = self._mlp_backward(upstream, saved, found)
        del upstream
        dx = self._attention_backward(d_middle, x, row, saved, found, wanted=wanted)
        return dx, [gradient for name in self.groups for gradient in found[name]]

    def _mlp_backward(
        self, upstream: Tensor, saved: Saved, found: dict[str, list[Tensor]]
    ) -> Tensor:
        assert saved.pair is not None
        assert saved.middle is not None
        error = upstream
        if self.after_mlp is not None:
            error = self._norm_backward(upstream, saved.mapped, self.after_mlp)
            saved.mapped = None
        inner = self.elementwise(self.activation[0], saved.pair)
        error = self._linear_backward("down", error, inner, saved, found)
        del inner
        error = self.elementwise(self.activation[1], error, saved.pair)
        saved.pair = None
        normal = self._norm(saved.middle, self.before_mlp)
        error = self._linear_backward("gate_up", error, normal, saved, found)
        return self._norm_backward(error, saved.middle, self.before_mlp, added=upstream)

    def _attention_backward(
        self, d_middle: Tensor, x: Tensor, row: Row, saved: Saved,
        found: dict[str, list[Tensor]], *, wanted: bool,
    ) -> Tensor | None:  # fmt: skip
        assert saved.qkv is not None
        assert saved.attended is not None
        error = d_middle
        if self.after_attention is not None:
            error = self._norm_backward(d_middle, saved.projected, self.after_attention)
        attended = _only(row, saved.attended.flatten(1))
        error = self._linear_backward("o", error, attended, saved, found)
        error = _spread(row, error, len(x)).view_as(saved.attended)
        del attended
        saved.attended = saved.middle = saved.projected = None
        gradients = self.attention.backward(error, *self._heads(saved.qkv, row), row.segments)
        error = self._heads_backward(*gradients, saved.qkv, row)
        saved.qkv = None
        del gradients
        normal = self._norm(x, self.before_attention)
        dx = self._linear_backward("qkv", error, normal, saved, found, wanted=wanted)
        if not wanted:
            return None
        residual = _spread(row, d_middle, len(x))
        return self._norm_backward(dx, x, self.before_attention, added=residual)

    def _heads(self, qkv: Tensor, row: Row) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as attention takes them, and values: (tokens, heads, width)."""
        q, k, v = self._split(qkv)
        q, k = (
            part if norm is None else self._head_norm(part, norm)
            for part, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        q, k = (self.elementwise(ew.rotated, part, row.cos, row.sin) for part in (q, k))
        return q, k, v

    def _heads_backward(self, dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, row: Row) -> Tensor:
        sin = -row.sin
        dq, dk = (self.elementwise(ew.rotated, part, row.cos, sin) for part in (dq, dk))
        q, k, _ = self._split(qkv)
        if self.q_norm is not None:
            dq = self._head_norm_backward(dq, q, self.q_norm)
        if self.k_norm is not None:
            dk = self._head_norm_backward(dk, k, self.k_norm)
        return torch.cat([dq.flatten(1), dk.flatten(1), dv.flatten(1)], dim=1)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries = self.o.inputs
        keys = (qkv.shape[1] - queries) // 2
        q, k, v = (
            part.view(len(part), -1, self.head_width)
            for part in torch.split(qkv, [queries, keys, keys], dim=1)
        )
        return q, k, v

    def _linear(self, name: str, x: Tensor, saved: Saved, *, added: Tensor | None = None) -> Tensor:
        y, saved.kept[name] = self.groups[name].forward(x, added=added, kept=saved.kept.get(name))
        return y

    def _linear_backward(
        self, name: str, upstream: Tensor, x: Tensor, saved: Saved,
        found: dict[str, list[Tensor]], *, wanted: bool = True,
    ) -> Any:  # fmt: skip
        dx, found[name] = self.groups[name].backward(
            upstream, x, saved.kept.pop(name), wanted=wanted
        )
        return dx

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return self.elementwise(ew.rms_norm, x, norm.gain, norm.epsilon)

    def _norm_backward(
        self, upstream: Tensor, x: Tensor | None, norm: Norm, *, added: Tensor | None = None
    ) -> Tensor:
        assert x is not None
        if added is None:
            return self.elementwise(ew.rms_norm_backward, upstream, x, norm.gain, norm.epsilon)
        return self.elementwise(
            ew.rms_norm_backward_added, upstream, x, added, norm.gain, norm.epsilon
        )

    def _head_norm(self, part: Tensor, norm: Norm) -> Tensor:
        return self._norm(part.reshape(-1, self.head_width), norm).view_as(part)

    def _head_norm_backward(self, upstream: Tensor, part: Tensor, norm: Norm) -> Tensor:
        flat = part.reshape(-1, self.head_width)
        return self._norm_backward(upstream.view_as(flat), flat, norm).view_as(upstream)


def _only(row: Row, x: Tensor) -> Tensor:
    return x if row.wanted is None else x[row.wanted]


def _spread(row: Row, x: Tensor, tokens: int) -> Tensor:
    """The gradient of ``_only``."""
    if row.wanted is None:
        return x
    return x.new_zeros(tokens, x.shape[1]).index_copy_(0, row.wanted, x)


class _LayerFunction(torch.autograd.Function):
    """A layer's place in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, row: Row, *_: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out, saved = layer.forward(x, row)
        saved.reduce(layer.keep)
        saved.mapped = saved.mapped if layer.keep == Keep.ALL else None
        ctx.save_for_backward(x)
        ctx.layer, ctx.row, ctx.saved = layer, row, saved
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        saved, ctx.saved = ctx.saved, None
        if saved is None:
            raise RuntimeError("a second backward pass: what the first one needed is gone")
        with torch.autocast(x.device.type, enabled=False):
            dx, gradients = ctx.layer.backward(
                upstream[0].contiguous(), x, ctx.row, saved, wanted=ctx.needs_input_grad[0]
            )
        return dx, None, None, *gradients
