"""Let decoder layers compute by hand on packed rows, where that is proven to be the same.

A layer's ``forward`` is replaced on the instance: on a packed row it goes through
``kernels.layer``, on anything else (padded batches, generation, adapters switched off) through
its own code. Parameters, modules and their names stay as they are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.kernels.attention import Segment, plain_segments
from qlora_core.kernels.dequantize import Workspace
from qlora_core.kernels.elementwise import Elementwise
from qlora_core.kernels.head import Head
from qlora_core.kernels.head_probe import LabelHead, Unfit, evaluating, refusing
from qlora_core.kernels.layer import Layer
from qlora_core.kernels.layer_probe import prove, read_layer, signature
from qlora_core.kernels.layer_state import Keep, Row
from qlora_core.kernels.linears import resident
from qlora_core.kernels.packing import bounds_of, packed_states, two_samples
from qlora_core.kernels.row_mask import RowMask, answering

ALONE = 1e-2
"""Of hidden states of tokens that a last layer computes alone; another product's rounding leaves
nothing to 1e-3, a token that should have been seen far more."""
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(eq=False)
class FastLayers:
    """Which layers of a decoder compute by hand."""

    head: Head
    """Its softmax is compiled with the layers."""
    elementwise: Elementwise = field(default_factory=Elementwise)
    layers: dict[str, Layer] = field(default_factory=dict)
    """By path in the decoder, first to last."""
    modules: list[Any] = field(default_factory=list)
    """The model's own, in the same order."""
    refused: dict[str, str] = field(default_factory=dict)
    """Path -> why this layer goes through its own code."""
    value_bytes: int = 2
    """Of one activation."""
    narrow: Layer | None = None
    """The last layer, where it is proven that tokens which answer nothing may be left out of it:
    nothing after it lets tokens see each other. Without dropout it computes the others alone."""

    def recompute_by_themselves(self) -> None:
        """Take checkpointing, switched on for all layers of the model, off those by hand."""
        for module, layer in zip(self.modules, self.layers.values(), strict=True):
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False
                layer.keep = Keep.INPUT

    def keep_within(self, room: float, tokens: int) -> dict[Keep, int]:
        """Let layers keep as much as fits into ``room`` bytes at ``tokens`` a row; how many what.

        The last first. Where ``room`` does not even hold their inputs, that is all they keep.
        """
        unit = tokens * self.value_bytes
        left = room - self._bytes_at(Keep.INPUT, unit)
        counts = dict.fromkeys(reversed(Keep), 0)
        for layer in reversed(self.layers.values()):
            least = layer.kept_per_token(Keep.INPUT)
            prices = {keep: unit * (layer.kept_per_token(keep) - least) for keep in counts}
            layer.keep = next((keep for keep in counts if prices[keep] <= left), Keep.INPUT)
            left -= prices[layer.keep]
            counts[layer.keep] += 1
        return counts

    def compile(self, dtype: torch.dtype) -> float:
        """Compile what lies between matrix products, for activations in ``dtype``: seconds.

        Compiled code is kept on disk by torch and found there by the next run. Raises Unfit
        where nothing can be compiled; all is as before then.
        """
        began = time.perf_counter()
        self.elementwise.compile()
        try:
            with torch.no_grad():
                _exercise(next(iter(self.layers.values())), self.head, dtype)
        except (RuntimeError, ImportError, OSError, AttributeError) as error:
            self.elementwise.use_tiles()
            first = str(error).strip().splitlines()[:1]
            raise Unfit(f"nothing can be compiled here: {' '.join(first)}") from error
        return time.perf_counter() - began

    def kept_bytes(self, tokens: int) -> int:
        """What all layers together keep of a row of ``tokens``."""
        values = sum(layer.kept_per_token(layer.keep) for layer in self.layers.values())
        return tokens * self.value_bytes * values

    def _bytes_at(self, keep: Keep, unit: int) -> int:
        return unit * sum(layer.kept_per_token(keep) for layer in self.layers.values())


def install(base: Any, parts: LabelHead, autocast: Autocast) -> FastLayers:
    """Replace what is proven. Raises Unfit where no layer is.

    ``base`` must compute packed rows already (``packing.prepare``).
    """
    modules = _decoder_layers(parts.decoder)
    with evaluating(base), torch.no_grad(), autocast():
        given = _given(parts, base, modules)
    proven = dict[Any, str]()
    reasons = {path: _reason(module, given[path], proven) for path, module in modules.items()}
    fit = [path for path, reason in reasons.items() if not reason]
    if not fit:
        raise Unfit(next(iter(reasons.values())))
    found = FastLayers(parts.head, value_bytes=given[fit[0]]["position_embeddings"][0].itemsize)
    found.refused |= {path: reason for path, reason in reasons.items() if reason}
    parts.head.elementwise = found.elementwise
    weights = resident(Workspace())
    for path in fit:
        found.layers[path] = read_layer(modules[path], weights, found.elementwise)
        found.modules.append(modules[path])
        _replace(modules[path], found.layers[path], found)
    found.recompute_by_themselves()
    found.narrow = found.layers.get(next(reversed(modules)))
    with evaluating(base), torch.no_grad(), autocast():
        if not _leaves_the_rest_alone(parts.decoder, base):
            found.narrow = None
    return found


def _exercise(layer: Layer, head: Head, dtype: torch.dtype) -> None:
    """Forward and backward on rows that are no sample: every function runs once."""
    tokens = 48
    x = torch.randn(tokens, layer.qkv.inputs, dtype=dtype)
    cos, sin = torch.randn(2, tokens, 1, layer.head_width, dtype=dtype)
    row = Row(plain_segments([0, tokens]), cos, sin)
    out, saved = layer.forward(x, row)
    layer.backward(out, x, row, saved, wanted=True)
    head.tile(x, torch.zeros(tokens, dtype=torch.long), wanted=True)


def _reason(module: nn.Module, given: dict[str, Any], proven: dict[Any, str]) -> str:
    """Why this layer stays as it is; empty where it need not. Alike layers are proven once."""
    known = signature(module)
    if known not in proven:
        try:
            with refusing("its layers cannot be called alone"):
                prove(module, _row(given), _beside(given))
            proven[known] = ""
        except Unfit as unfit:
            proven[known] = str(unfit)
    return proven[known]


def _decoder_layers(decoder: nn.Module) -> dict[str, nn.Module]:
    """The longest list of modules in the decoder, by path."""
    lists = [(p, m) for p, m in decoder.named_modules() if isinstance(m, nn.ModuleList)]
    path, layers = max(lists, key=lambda pair: len(pair[1]), default=("", nn.ModuleList()))
    if not len(layers):
        raise Unfit("its decoder has no list of layers")
    return {f"{path}.{i}": layer for i, layer in enumerate(layers)}


def _given(parts: LabelHead, base: Any, modules: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """What the decoder passes to each layer on a packed row, by name."""
    seen: dict[str, dict[str, Any]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if len(arguments) == 1:
                seen[path] = named

        return hook

    hooks = [
        module.register_forward_pre_hook(note(path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        packed_states(parts.decoder, *two_samples(base))
    finally:
        for hook in hooks:
            hook.remove()
    if set(seen) != set(modules):
        raise Unfit("its layers are called otherwise than with hidden states and names")
    return seen


def _beside(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "hidden_states"}


def _leaves_the_rest_alone(decoder: nn.Module, base: Any) -> bool:
    """Whether tokens are as they were when the last layer computes them alone."""
    ids, mask = two_samples(base)
    some = torch.arange(1, int(mask.sum()), 3, device=ids.device)
    whole = packed_states(decoder, ids, mask)[some].float()
    alone = packed_states(decoder, ids, mask, answering=some)[some].float()
    return bool((alone - whole).norm() < ALONE * whole.norm())


def _replace(module: Any, layer: Layer, fast: FastLayers) -> None:
    own = module.forward

    def forward(hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        packed = "cu_seq_lens_q" in named and named.get("past_key_values") is None
        if not packed or arguments or not _suits(hidden_states, layer):
            return own(hidden_states, *arguments, **named)
        x, row = hidden_states[0], _row(named)
        some = answering() if layer is fast.narrow and not layer.drops else None
        if some is None:
            return layer(x, row)[None]
        made = layer(x, dataclasses.replace(row, wanted=some))
        return x.new_zeros(x.shape).index_copy(0, some, made)[None]

    module.forward = forward


def _suits(x: Tensor, layer: Layer) -> bool:
    """Whether this is one row in the dtype that is computed in, and adapters are as they were."""
    device = x.device.type
    right = not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) == x.dtype
    return right and len(x) == 1 and all(group.is_as_read for group in layer.groups.values())


def _row(named: dict[str, Any]) -> Row:
    """The packed row that a decoder describes by what it passes to its layers."""
    cos, sin = (part[0, :, None] for part in named["position_embeddings"])
    bounds = bounds_of(named["cu_seq_lens_q"])
    return Row(segments(named.get("attention_mask"), bounds), cos, sin)


def segments(mask: RowMask | Tensor | None, bounds: list[int]) -> list[Segment]:
    """The samples between ``bounds``, each with what its tokens see.

    A mask of (1, 1, tokens, tokens) is bool, or added to the scores. Where the last token of a
    sample sees all of it the sample is plainly causal.
    """
    if mask is None:
        return plain_segments(bounds)
    rule = mask if isinstance(mask, RowMask) else _rule(mask[0, 0])
    made = []
    for first, last in pairwise(bounds):
        plain = rule.sees_all_before(last - 1, first)
        made.append(Segment(first, last, None if plain else _visible(rule, first)))
    return made


def _rule(mask: Tensor) -> RowMask:
    seen = mask if mask.dtype == torch.bool else mask == 0
    return RowMask(lambda _batch, _head, query, key: seen[query, key], mask.device)


def _visible(rule: RowMask, first: int) -> Callable[[int, int], Tensor]:
    return lambda start, stop: rule.part(
        slice(first + start, first + stop), slice(first, first + stop)
    )
