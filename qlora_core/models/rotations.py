"""Rotary frequencies, which no checkpoint holds, as the model's own class computes them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger("qlora-core")


def set_rotations(model: nn.Module) -> list[str]:
    """Give rotary embeddings the buffers that they are built with; the paths of those that had
    others, which are logged.

    Transformers computes them anew after loading, in ``_init_weights``; some classes of 5.0
    (RecurrentGemma) override that without doing so, and hold whatever lay in memory.
    """
    mended = []
    for path, module in model.named_modules():
        config: Any = getattr(module, "config", None)
        if "RotaryEmbedding" not in type(module).__name__ or config is None:
            continue
        try:
            built = dict(type(module)(config).named_buffers())
        except (TypeError, ValueError, AttributeError, KeyError):
            continue  # it is built otherwise than transformers' own, which take their config
        for name, buffer in module.named_buffers():
            expected = built.get(name)
            if expected is None or buffer.is_meta or expected.shape != buffer.shape:
                continue
            if not torch.equal(expected.to(buffer), buffer):
                buffer.copy_(expected)
                mended.append(f"{path}.{name}")
    if mended:
        log.info("rotary frequencies that loading had left unset: %s", ", ".join(mended))
    return mended
