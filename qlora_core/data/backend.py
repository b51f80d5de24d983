"""Tokenize text once, with character offsets, with or without control tokens.

Control tokens are a tokenizer's added tokens that mean something: all special ones, and the
others that are more than letters or white space (``<think>``, ``[INST]``). In text that came
from data they are encoded letter by letter, as any other text is.
"""

from __future__ import annotations

import json
import re
import secrets
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from qlora_core.errors import BadInput

Span = tuple[int, int]
Control = list[tuple[int, Span]]
"""Control tokens in a text: the id of each, and its characters."""
FILLER = "x"
"""What stands in for each character of a control token that is to be ignored."""


class Tokens(NamedTuple):
    """Token ids and, for each, the characters of the text that it stands for."""

    ids: list[int]
    offsets: list[Span]


class Backend:
    """A private copy of a fast tokenizer: no padding, no truncation, whole offsets.

    Offsets are taken without the tokenizer's post-processor, which would trim white space
    from them; the ids are those of ``tokenizer(text, add_special_tokens=False)``.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise BadInput(
                f"{type(tokenizer).__name__} has no fast backend: it cannot tell which characters "
                "a token stands for, so no label could be trusted",
                "save a tokenizer.json beside the model (transformers converts most tokenizers)",
            )
        self._source: dict[str, Any] = json.loads(backend.to_str())
        self._source |= {"post_processor": None, "padding": None, "truncation": None}
        self._plain = Tokenizer.from_str(json.dumps(self._source))
        self.added = {t["content"]: int(t["id"]) for t in self._source["added_tokens"]}
        self.control = frozenset(
            t["content"] for t in self._source["added_tokens"] if _is_control(t)
        )
        self.special = frozenset(t["content"] for t in self._source["added_tokens"] if t["special"])
        self.names = {self.added[token]: token for token in self.control}

    def encode(self, text: str) -> Tokens:
        """One pass over the whole text; nothing is added to it."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, encoding.offsets)

    def control_tokens(self, tokens: Tokens, text: str) -> Control:
        """The (id, span) of every control token that ``text`` spells out."""
        names = self.names
        pairs = zip(tokens.ids, tokens.offsets, strict=True)
        # an unknown character yields the unk token too: only what is spelt out counts
        return [(i, (s, e)) for i, (s, e) in pairs if i in names and names[i] in text[s:e]]

    def spells_control(self, text: str) -> bool:
        """Whether ``text`` holds the text of a control token."""
        return self._spelt.search(text) is not None

    def spelt(self, text: str) -> set[str]:
        """The control tokens that ``text`` holds."""
        return set(self._spelt.findall(text))

    def replace_control(self, text: str) -> str:
        """``text`` with letters in place of every control token, until none is left."""
        while self.spells_control(text):
            text = self._spelt.sub(lambda match: FILLER * len(match[0]), text)
        return text

    def encode_inert(self, text: str, kept: Control) -> Tokens:
        """One pass over ``text`` in which ``kept`` are the only control tokens there are.

        What stands between them is encoded as a tokenizer without control tokens does.
        """
        ids: list[int] = []
        offsets: list[Span] = []
        position = 0
        for token, (start, end) in [*kept, (-1, (len(text), len(text)))]:
            if position < start:
                bare = self._bare if position == 0 else self._bare_inside
                encoding = bare.encode(text[position:start], add_special_tokens=False)
                ids += encoding.ids
                offsets += [(s + position, e + position) for s, e in encoding.offsets]
            if token >= 0:
                ids.append(token)
                offsets.append((start, end))
            position = end
        return Tokens(ids, offsets)

    @cached_property
    def _spelt(self) -> Any:
        longest_first = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _bare(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(_without(self._source, self.control)))

    @cached_property
    def _bare_inside(self) -> Tokenizer:
        """As `_bare`, for text that does not begin the sequence (no leading mark is added)."""
        source = _without(self._source, self.control)
        _never_first(source.get("pre_tokenizer"))
        return Tokenizer.from_str(json.dumps(source))


def _is_control(token: dict[str, Any]) -> bool:
    words = token["content"].replace("▁", " ")
    return bool(token["special"]) or not all(c.isalnum() or c.isspace() for c in words)


def _without(source: dict[str, Any], control: frozenset[str]) -> dict[str, Any]:
    """The tokenizer with control tokens that no text can spell; all ids stay as they are.

    The model's own vocabulary is changed as well: a Unigram model finds ``</s>`` in it by
    itself, and so does a BPE model that looks whole words up.
    """
    hidden = {token: f"\0{secrets.token_hex(8)}" for token in control}
    model = dict(source["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(token, token): i for token, i in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[hidden.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if not control & _merged(m)]
    added = [
        {**token, "content": hidden.get(token["content"], token["content"])}
        for token in source["added_tokens"]
    ]
    copied = json.loads(json.dumps({**source, "model": None}))
    return {**copied, "model": model, "added_tokens": added}


def _merged(merge: Any) -> set[str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    return {left, right, left + right}


def _never_first(pre_tokenizer: Any) -> None:
    if not isinstance(pre_tokenizer, dict):
        return
    if pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
    for inner in pre_tokenizer.get("pretokenizers", ()):
        _never_first(inner)
