"""Find a model's decoder and head, and what lies between head and logits, by measuring it.

Nothing is told by names: the model's own forward runs once on random tokens with the head's
output replaced by known values, and what comes out says how logits are scaled and capped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.errors import is_out_of_memory
from qlora_core.kernels.head import Head

LENGTH = 8
SMALL, LARGE = 1e-3, 1e6
TOLERANCE = 1e-4
"""Relative; float32 rounding leaves some 1e-6, a wrong formula far more."""


class Unfit(Exception):
    """The label-only head cannot stand in for this model's own; the message says why."""


@dataclass(frozen=True)
class LabelHead:
    """What computes a loss without the model's own forward."""

    decoder: nn.Module
    """From token ids to what the head takes; adapters lie within it."""
    head: Head

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(samples, length, width) from ids and mask of (samples, length)."""
        output = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Unfit in place of whatever a model's own code raises, which may be anybody's.

    Not where memory ran out: a road that takes more of it is none then.
    """
    try:
        yield
    except Unfit:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Unfit(f"{what}: {error}") from error


def find_head(model: Any, autocast: Callable[[], AbstractContextManager[object]]) -> LabelHead:
    """The parts of ``model`` (PEFT's or transformers'), proven equal to its own forward.

    Raises Unfit where the head is trained, adapted, quantized or no plain linear layer, and
    where decoder, head and a scale or soft cap do not give the model's own logits.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = base.get_output_embeddings()
    _require_plain(module)
    decoder = _decoder(base)
    with (
        refusing("its parts cannot be called alone"),
        evaluating(model), torch.no_grad(), autocast(),
    ):  # fmt: skip
        return _proven(base, decoder, module)


def _proven(base: Any, decoder: nn.Module, module: nn.Linear) -> LabelHead:
    inputs = _random_inputs(base, module.weight.device)
    scale, cap, taken = _after_head(base, module, inputs)
    found = LabelHead(decoder, Head(module, scale, cap))
    given = found.hidden_states(**inputs)
    _require_same(taken, given, "its decoder gives the head something else")
    _require_same_logits(base, found.head, inputs, given)
    return found


def _require_plain(module: Any) -> None:
    if type(module) is not nn.Linear:
        raise Unfit(f"its output head is a {type(module).__name__}, not a plain linear layer")
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise Unfit("its output head is trained")
    if module._forward_hooks or module._forward_pre_hooks:
        raise Unfit("its output head carries hooks")


def _decoder(base: Any) -> nn.Module:
    try:
        decoder = base.get_decoder()
    except (AttributeError, NotImplementedError):
        decoder = base.base_model
    if decoder is None or decoder is base:
        raise Unfit("it has no decoder apart from its head")
    return decoder  # type: ignore[no-any-return]  # a transformers model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment: dropout would make two passes differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _random_inputs(base: Any, device: torch.device) -> dict[str, Tensor]:
    """Two rows of random tokens, the second half padding: (2, ``LENGTH``)."""
    vocabulary = base.get_input_embeddings().weight.shape[0]
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, LENGTH), generator=drawn).to(device)
    mask = torch.ones_like(ids)
    mask[1, LENGTH // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _after_head(
    base: Any, module: nn.Linear, inputs: dict[str, Tensor]
) -> tuple[float, float | None, Tensor]:
    """Scale and soft cap between head and logits, and what the head was given."""
    rows = LENGTH * 2
    grid = torch.linspace(-40, 40, rows * module.out_features, device=module.weight.device)
    grid[0], grid[1] = SMALL, LARGE
    known = grid.view(2, LENGTH, module.out_features)
    taken: list[Tensor] = []

    def replace(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(arguments[0])
        return known.clone() if output.shape == known.shape else output

    hook = module.register_forward_hook(replace)
    try:
        logits = base(**inputs).logits.float()
    finally:
        hook.remove()
    if len(taken) != 1 or logits.shape != known.shape:
        raise Unfit("its forward does not pass all positions through the head once")
    scale, largest = float(logits[0, 0, 0]) / SMALL, float(logits[0, 0, 1])
    capped = largest < 0.5 * scale * LARGE
    expected = known * scale
    if capped:
        expected = largest * (expected / largest).tanh()
    if not math.isfinite(scale) or scale <= 0 or largest <= 0:
        raise Unfit("its logits are no scaled or capped products of the head")
    _require_same(logits, expected, "its logits are no scaled or capped products of the head")
    return scale, largest if capped else None, taken[0]


def _require_same_logits(base: Any, head: Head, inputs: dict[str, Tensor], hidden: Tensor) -> None:
    """With its own head: what the model says, up to the rounding of 16-bit products."""
    own = base(**inputs).logits.float()
    ours = head.logits(hidden.flatten(0, 1).to(own.dtype)).view_as(own)
    off = float((own - ours).square().mean().sqrt() / own.square().mean().sqrt().clamp_min(1e-12))
    if not off < 0.02:
        raise Unfit(f"its logits differ from those of its parts by {off:.1%}")


def _require_same(own: Tensor, ours: Tensor, otherwise: str) -> None:
    if own.shape != ours.shape:
        raise Unfit(otherwise)
    difference = (own.float() - ours.float()).abs()
    if not bool((difference <= TOLERANCE * own.float().abs().clamp_min(1e-3)).all()):
        raise Unfit(otherwise)
