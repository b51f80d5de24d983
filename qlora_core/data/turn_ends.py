"""Where an assistant's turn ends in rendered text, and which token ends it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qlora_core.data.backend import Backend, Control, Span
from qlora_core.data.spans import Answer, locate, shared_start
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
    ``found`` is the token that the template itself writes after the last answer, if any.
    """

    tokens: frozenset[str]
    literal: str = ""
    found: str | None = None


@dataclass(frozen=True)
class Learned:
    """An answer with what ends its turn: characters of the text, and whether a token does."""

    span: Span
    ended: bool


def probe_turn_ends(template: ChatTemplate, backend: Backend, known: Collection[str]) -> TurnEnds:
    """What ``template`` writes after answers, from two turns of plain words.

    ``known`` are tokens that end turns by what the tokenizer and its family say.
    """
    try:
        rendering = locate(template, PROBE, None)
    except BadInput:
        return TurnEnds(frozenset(known))
    text, first, last = rendering.text, rendering.answers[1], rendering.answers[3]
    control = backend.control_tokens(backend.encode(text), text)
    closing = _first(control, last.end, len(text))
    if closing is None:
        return TurnEnds(frozenset(known), _literal(text[first.end :], text[last.end :]))
    name, (left, _) = backend.names[closing[0]], closing[1]
    tokens = {*known, name}
    question = str(PROBE[2]["content"])
    asked = text.find(question) + len(question)
    following = _first(control, asked, last.start)
    # what ends a user's turn ends an assistant's: some close the last turn with another token
    if question in text and following and not text[asked : following[1][0]].strip():
        tokens.add(backend.names[following[0]])
    return TurnEnds(frozenset(tokens), text[last.end : left].strip(), name)


def with_ends(
    text: str,
    answers: Sequence[Answer],
    control: Control,
    backend: Backend,
    ends: TurnEnds,
    eos: str | None,
    *,
    closed: bool,
) -> list[Learned]:
    """Each answer with what ends its turn; ``closed`` says that the last answer ends the text."""
    learned = []
    for number, answer in enumerate(answers):
        is_last = number + 1 == len(answers)
        limit = len(text) if is_last else answers[number + 1].start
        named = [(backend.names[i], s) for i, s in control if answer.last <= s[0] and s[1] <= limit]
        end = _end_token(text, answer, named, ends, anything_between=is_last and closed)
        if end is None:
            learned.append(_without_token(text, answer, named, backend, ends, limit))
            continue
        right = named[end][1][1]
        if named[end + 1 : end + 2] and named[end + 1] == (eos, (right, named[end + 1][1][1])):
            right = named[end + 1][1][1]
        learned.append(Learned((answer.start, right), True))
    return learned


def _end_token(
    text: str,
    answer: Answer,
    control: Sequence[tuple[str, Span]],
    ends: TurnEnds,
    *,
    anything_between: bool,
) -> int | None:
    """Which of the control tokens after an answer ends its turn."""
    for number, (name, (left, right)) in enumerate(control):
        between = text[answer.end : left].strip()
        if right > answer.end and not anything_between and between not in ("", ends.literal):
            return None
        if name in ends.tokens:
            return number
        if answer.last == answer.end and not anything_between:
            return None
    return None


def _without_token(
    text: str,
    answer: Answer,
    control: Sequence[tuple[str, Span]],
    backend: Backend,
    ends: TurnEnds,
    limit: int,
) -> Learned:
    """A turn that no known token ends: as far as its data or its plain mark goes."""
    start, end, last = answer
    if end > last:
        end = next((s[0] for _, s in control if s[0] < end < s[1]), end)
        by_special = any(s[1] == end and name in backend.special for name, s in control)
        return Learned((start, end), by_special)
    if ends.literal and text[end:limit].lstrip().startswith(ends.literal):
        end = text.index(ends.literal, end) + len(ends.literal)
    return Learned((start, end), False)


def _literal(after_first: str, after_last: str) -> str:
    """What a template without end tokens writes after every answer: a mark in plain text."""
    mark = re.match(r"\s*(<[^<>\s]+>)", after_last)
    return mark[1] if mark else after_last[: shared_start(after_first, after_last)].strip()


def _first(control: Control, start: int, limit: int) -> tuple[int, Span] | None:
    return next(((i, s) for i, s in control if start <= s[0] and s[1] <= limit), None)
