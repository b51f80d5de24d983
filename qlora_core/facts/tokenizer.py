"""What a family needs of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bos = Literal["required", "forbidden", "as tokenizer"]
Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class TokenizerPolicy:
    """Facts about a family's tokenizer. A folder's own tokenizer settings win over them.

    ``pad`` lists reserved tokens to pad with when the tokenizer names none, best first.
    ``bos`` says whether raw text must start with the BOS token, must not, or follows
    what the tokenizer does by itself; a chat template decides for conversations.
    ``turn_end`` ends an assistant's turn and is learned; ``None`` means the EOS token.
    ``stop`` lists further tokens that end generation.
    """

    pad: tuple[str, ...] = ()
    bos: Bos = "as tokenizer"
    turn_end: str | None = None
    stop: tuple[str, ...] = ()
    train_padding_side: Side = "right"
    generate_padding_side: Side = "left"
