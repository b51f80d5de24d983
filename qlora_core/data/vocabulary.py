"""Does the model know the tokens that training is about to use?"""

from __future__ import annotations

from typing import Any

import torch

from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.turn_ends import PROBE
from qlora_core.errors import BadInput
from qlora_core.facts.tokenizer import TokenizerPolicy

FAINT = 0.05
"""A row is untrained when its norm is less than this part of the median row's."""


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Raise BadInput when the tokenizer knows ids that the embedding matrix has no row for.

    ``rows`` is the number of rows. More rows than tokens is usual and harmless: padding.
    """
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if outside:
        some = ", ".join(sorted(outside, key=outside.__getitem__)[:3])
        raise BadInput(
            f"the tokenizer has {len(outside)} tokens (such as {some}) beyond the model's "
            f"{rows:,} embedding rows",
            "give the tokenizer that belongs to this model, or a model whose embeddings were "
            "resized for it",
        )


def untrained_tokens(
    tokenizer: Any, embeddings: torch.Tensor, policy: TokenizerPolicy | None = None
) -> list[str]:
    """Tokens that the chat template writes and whose rows of ``embeddings`` look untrained.

    ``embeddings`` has shape (rows, hidden). Near zero, or equal to another of these rows:
    so base checkpoints hold the chat tokens of their instructed sisters, and LoRA on the
    layers between cannot make up for it.
    """
    codec = codec_of(tokenizer, policy or TokenizerPolicy())
    template = codec.template(source_of(tokenizer, None, None), {})
    try:
        text = template.render(PROBE)
    except BadInput:
        return []
    written = {i for i, _ in codec.backend.control_tokens(codec.backend.encode(text), text)}
    ids = sorted(i for i in written if i < embeddings.shape[0])
    if not ids:
        return []
    rows = embeddings[ids].float()
    sample = embeddings[:: max(1, embeddings.shape[0] // 4096)].float()
    faint = rows.norm(dim=1) < FAINT * sample.norm(dim=1).median()
    alike = (torch.cdist(rows, rows) < 1e-6).sum(dim=1) > 1
    untrained = (faint | alike).tolist()
    return [codec.backend.names[i] for i, bad in zip(ids, untrained, strict=True) if bad]
