"""Where an assistant's turn ends in rendered text, and which token ends it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from qlora_core.data.backend import Span, Tokens
from qlora_core.data.inject import Control
from qlora_core.data.spans import locate
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput

PROBE = (
    {"role": "user", "content": "Probe the first question"},
    {"role": "assistant", "content": "Probe the first answer"},
    {"role": "user", "content": "Probe the second question"},
    {"role": "assistant", "content": "Probe the second answer"},
)


@dataclass(frozen=True)
class TurnEnds:
    """What ends a turn with one template.

    ``tokens`` end it wherever they follow an answer; ``literal`` is what the template writes
    between the answer and the token (or instead of one), without white space around it.
    """

    tokens: frozenset[str]
    literal: str = ""
    found: str | None = None
    """The token that the template itself writes after the last answer."""


def probe_turn_ends(
    template: ChatTemplate,
    encode: Callable[[str], tuple[Tokens, Control]],
    names: Mapping[int, str],
    known: Collection[str],
) -> TurnEnds:
    """What ``template`` writes after answers, from two turns of plain words.

    ``known`` are tokens that end turns by what the tokenizer and its family say.
    """
    try:
        rendering = locate(template, PROBE, None)
    except BadInput:
        return TurnEnds(frozenset(known))
    text, (_, end) = rendering.text, rendering.spans[3]
    _, control = encode(text)
    token = _first(control, end, len(text))
    if token is None:
        return TurnEnds(frozenset(known), text[end:].strip())
    tokens = {*known, names[token[0]]}
    question = str(PROBE[2]["content"])
    after_user = text.find(question) + len(question)
    following = _first(control, after_user, rendering.spans[3][0])
    if question in text and following and not text[after_user : following[1][0]].strip():
        tokens.add(names[following[0]])
    return TurnEnds(frozenset(tokens), text[end : token[1][0]].strip(), names[token[0]])


def with_ends(
    text: str,
    answers: Sequence[Span],
    control: Control,
    names: Mapping[int, str],
    ends: TurnEnds,
    eos: str | None,
) -> list[tuple[Span, bool]]:
    """Each answer's span, extended over what ends its turn, and whether a token does."""
    limits = [start for start, _ in answers[1:]] + [len(text)]
    return [
        _extend(text, span, limit, control, names, ends, eos)
        for span, limit in zip(answers, limits, strict=True)
    ]


def _extend(
    text: str,
    span: Span,
    limit: int,
    control: Control,
    names: Mapping[int, str],
    ends: TurnEnds,
    eos: str | None,
) -> tuple[Span, bool]:
    start, end = span
    inside = next((s for _, s in control if start < s[0] < end < s[1]), None)
    if inside is not None:
        return (start, inside[1]), True
    following = [(i, s) for i, s in control if end <= s[0] and s[1] <= limit]
    if following:
        token, (left, right) = following[0]
        between = text[end:left].strip()
        if names[token] in ends.tokens and between in ("", ends.literal):
            for other, (at, stop) in following[1:2]:
                if at == right and names[other] == eos:
                    right = stop
            return (start, right), True
    if ends.literal and text[end:limit].lstrip().startswith(ends.literal):
        return (start, text.index(ends.literal, end) + len(ends.literal)), False
    return span, False


def _first(control: Control, start: int, limit: int) -> tuple[int, Span] | None:
    return next(((i, s) for i, s in control if start <= s[0] and s[1] <= limit), None)
