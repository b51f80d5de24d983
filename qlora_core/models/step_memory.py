"""What one training step keeps of its forward pass, and works with: in closed form, by its way.

Bytes from widths alone, for a 16-bit compute dtype. Constants were fitted to what real steps
hold; docs/memory.md states how far off they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from qlora_core.kernels.attention import ROWS
from qlora_core.kernels.head import tile_rows
from qlora_core.kernels.head_probe import Unfit
from qlora_core.kernels.layer_probe import linears_of
from qlora_core.models.names import hits
from qlora_core.models.parts import Structure

SAVED_PER_WIDTH, SAVED_PER_OUTPUT = 12.0, 3.75
"""What a layer saves for its backward pass per token: per unit of the hidden size (norms) and per
output of a linear layer. Fitted to saved tensors in bfloat16 under autocast."""
SAVED_PER_FUSED_OUTPUT = 2.5
"""The same where linear layers and their adapters are one function, which saves less."""
BACKWARD_PER_OUTPUT = 10.0
"""Temporaries per token and output of the layer's widest linear layer."""
PER_SCORE = 6.0
"""Attention scores that are written out: products, in float32, and shares."""
LOSS_PER_LOGIT = 14.0
"""Logits and their gradient in 16 bits, float32 logits, log-probabilities and their gradient."""
TILE_PER_LOGIT = 8.0
"""Of one tile: float32 logits and their exponentials."""
LAST_NORM = 16.0
"""Per token and hidden unit: the last norm and its float32 copies, forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step computes, as far as its memory depends on it. Nothing of it is ``--plain``."""

    label_only: bool = False
    """Logits of learned tokens alone, in tiles."""
    packed: bool = False
    """The samples of a micro-batch in one row without padding."""
    by_hand: bool = False
    """Decoder layers whose parts fit are one unit each."""
    fused: bool = False
    """In all other layers, linear layers and their adapters are one function."""
    refused: frozenset[str] = frozenset()
    """Layers that go through their own code, by path or its dotted end."""

    def within(self, skeleton: Any) -> Way:
        """Without what the structure of ``skeleton`` rules out before any probe."""
        label_only = self.label_only and type(skeleton.get_output_embeddings()) is nn.Linear
        apart = self.by_hand or getattr(skeleton, "_supports_sdpa", True)  # else: all scores
        packed = self.packed and label_only and apart and _takes_packed(skeleton)
        return Way(
            label_only=label_only,
            packed=packed,
            by_hand=self.by_hand and packed,
            fused=self.fused and label_only,
            refused=self.refused,
        )


PLAIN = Way()


def fast_way(device: str) -> Way:
    """What a run on ``device`` takes unless a probe refuses: all on CPUs, else head and packing."""
    on_cpu = device == "cpu"
    return Way(label_only=True, packed=True, by_hand=on_cpu, fused=on_cpu)


class LayerMemory(Protocol):
    """One decoder layer in a micro-batch of ``tokens``, of which one sample has ``length``.

    With ``again`` its forward pass is computed once more for the backward pass.
    """

    @property
    def dense(self) -> int:
        """The most weights that are dequantized at once."""

    def kept(self, tokens: int, length: int, *, again: bool) -> float:
        """Between forward and backward pass."""

    def work(self, tokens: int, length: int, *, again: bool) -> float:
        """On top during its backward pass."""


@dataclass(frozen=True, kw_only=True)
class OwnLayer:
    """A layer by its own code."""

    hidden: int
    outputs: int
    """Sum of its linear layers' outputs, active experts included."""
    widest: int
    dense: int
    heads: int
    """Whose attention scores are written out: 0 where attention is fused."""
    fused: bool

    def kept(self, tokens: int, length: int, *, again: bool) -> float:
        """See ``LayerMemory``."""
        return 2.0 * tokens * self.hidden if again else self._saved(tokens, length)

    def work(self, tokens: int, length: int, *, again: bool) -> float:
        """See ``LayerMemory``."""
        work = tokens * BACKWARD_PER_OUTPUT * self.widest
        return work + self._saved(tokens, length) if again else work

    def _saved(self, tokens: int, length: int) -> float:
        per_output = SAVED_PER_FUSED_OUTPUT if self.fused else SAVED_PER_OUTPUT
        per_token = SAVED_PER_WIDTH * self.hidden + per_output * self.outputs
        return tokens * (per_token + PER_SCORE * self.heads * length)


@dataclass(frozen=True, kw_only=True)
class HandLayer:
    """A layer as ``kernels.layer`` computes it."""

    hidden: int
    queries: int
    qkv: int
    pair: int
    """Outputs of gate and up."""
    norms: int
    """2, or 4 where what attention and MLP give is normed as well."""
    ranks: int
    """Sum over its adapters."""
    groups: int
    """Of queries that share keys."""
    dense: int

    def kept(self, tokens: int, length: int, *, again: bool) -> float:  # noqa: ARG002  # LayerMemory's
        """See ``LayerMemory``; as ``Layer.kept_per_token`` counts."""
        values = self.hidden + self.ranks
        return 2.0 * tokens * (values if again else values + self._computed)

    def work(self, tokens: int, length: int, *, again: bool) -> float:
        """See ``LayerMemory``: the MLP's or attention's, when gate and up are gone."""
        keys = (self.qkv - self.queries) // 2
        attention = 2 * self.hidden + self.queries + 3 * self.qkv - self.pair
        tiles = length * (16 * keys + 12 * ROWS * self.groups)
        mlp = self.hidden + 1.5 * self.pair
        most = max(2 * tokens * mlp, 2 * tokens * attention + tiles)
        return most + 2 * tokens * self._computed if again else most

    @property
    def _computed(self) -> int:
        """Values per token that a forward pass makes and the backward pass needs."""
        return self.qkv + self.queries + (self.norms - 1) * self.hidden + self.pair


def layers_of(
    structure: Structure, skeleton: Any, way: Way, ranks: Mapping[str, int]
) -> list[LayerMemory]:
    """The decoder layers by ``way``; ``ranks`` are the sums of ranks by path of the layer."""
    refused = hits(structure.layers, way.refused)
    found: list[LayerMemory] = []
    for path in structure.layers:
        layer = None
        if way.by_hand and path not in refused:
            layer = _by_hand(skeleton.get_submodule(path), ranks.get(path, 0))
        found.append(layer or _own(structure, skeleton, path, fused=way.fused))
    return found


def head_bytes(
    way: Way, *, tokens: int, learned: float, hidden: int, vocabulary: int, scale: float
) -> float:
    """Head and loss; ``scale`` is the size of an activation over that in 16 bits."""
    if not way.label_only:
        return tokens * vocabulary * (2 + (LOSS_PER_LOGIT - 2) * learned) * scale
    rows = tokens * learned
    height = min(rows, tile_rows(vocabulary))
    states = (tokens * LAST_NORM + 6 * rows) * hidden
    return height * vocabulary * TILE_PER_LOGIT + states * scale


def _by_hand(module: nn.Module, ranks: int) -> HandLayer | None:
    try:
        linears = linears_of(module)
    except Unfit:
        return None
    if not all(type(linear) is nn.Linear for group in linears.values() for linear in group):
        return None
    outputs = {name: sum(x.out_features for x in group) for name, group in linears.items()}
    queries, width = linears["o"][0].in_features, _head_width(module)
    sizes = (outputs[name] * group[0].in_features for name, group in linears.items())
    norms = sum([p.dim() for p in part.parameters()] == [1] for part in module.children())
    return HandLayer(
        hidden=linears["qkv"][0].in_features,
        queries=queries,
        qkv=outputs["qkv"],
        pair=outputs["gate_up"],
        norms=norms,
        ranks=ranks,
        groups=(outputs["qkv"] - queries) // 2 // width,
        dense=max(sizes),
    )


def _head_width(module: nn.Module) -> int:
    widths = (getattr(part, "head_dim", None) for part in module.children())
    return next((width for width in widths if isinstance(width, int)), 0)


def _own(structure: Structure, skeleton: Any, path: str, *, fused: bool) -> OwnLayer:
    config = skeleton.config.get_text_config()
    active = int(getattr(config, "num_experts_per_tok", None) or 1)
    linears = [linear for linear in structure.linears if linear.layer == path]
    stacks = [stack for stack in structure.experts if stack.layer == path]
    outputs = sum(linear.out_features for linear in linears)
    experts = [stack.parameters // max(stack.shape[0], 1) for stack in stacks]
    written = not getattr(skeleton, "_supports_sdpa", True)
    return OwnLayer(
        hidden=int(skeleton.get_input_embeddings().weight.shape[1]),
        outputs=outputs + sum(active * max(stack.shape[1:]) for stack in stacks),
        widest=max((linear.out_features for linear in linears), default=0),
        dense=max((*(linear.parameters for linear in linears), *experts), default=0),
        heads=int(getattr(config, "num_attention_heads", None) or 1) if written else 0,
        fused=fused,
    )


def _takes_packed(skeleton: Any) -> bool:
    """Whether its decoder takes positions, and the lengths of samples beside them."""
    try:
        decoder = skeleton.get_decoder()
    except (AttributeError, NotImplementedError):
        decoder = skeleton.base_model
    known = inspect.signature(decoder.forward).parameters
    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    return "position_ids" in known and takes_more
