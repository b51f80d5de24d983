"""Find in a rendered conversation what the model should learn: answers and their ends.

The conversation is rendered twice, plainly and with one-time marks around each answer. Where
both agree once the marks are taken out, the marks tell where the answers are, whatever the
template does. Where they disagree (a template trims, splits off reasoning, rewrites history),
the marks are moved inwards, and what is still missing is found by comparing renderings.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qlora_core.data.template import ChatTemplate, Message
from qlora_core.errors import BadInput

Span = tuple[int, int]


@dataclass
class Rendering:
    """A conversation's text and, by message, where its answers stand in it."""

    text: str
    spans: dict[int, Span] = field(default_factory=dict)
    """Message number -> characters of the answer, without what ends its turn."""
    notes: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    """System messages that the template leaves out."""


def locate(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None
) -> Rendering:
    """Render ``messages`` and find the answers in the text.

    Raises BadInput where the template refuses, or where an answer cannot be found for sure.
    """
    text = template.render(messages, tools)
    nonce = secrets.token_hex(8)
    if nonce in text:
        raise BadInput("a one-time mark occurs in the data", "run again")
    for left, right in ((0, 0), (1, 1), (0, 1), (1, 0)):
        marked = _marked(messages, nonce, (left, right))
        found = _read_marks(_try(template, marked, tools), nonce)
        if found is not None and found[0] == text:
            rendering = Rendering(text)
            if left or right:
                rendering.notes.append("trimmed")
            _take(rendering, template, messages, tools, found[1], nonce)
            return rendering
    rendering = Rendering(text)
    _take(rendering, template, messages, tools, {}, nonce)
    return rendering


def _take(
    rendering: Rendering,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    marks: Mapping[tuple[int, str], int],
    nonce: str,
) -> None:
    position = 0
    for number, message in enumerate(messages):
        start, end = marks.get((number, "L")), marks.get((number, "R"))
        lost = start is None and _text(message).strip() not in rendering.text
        if message["role"] == "system" and lost:
            rendering.missing.append(number)
        if message["role"] != "assistant":
            continue
        whole = message.get("tool_calls") or message.get("reasoning_content")
        if whole or start is None or end is None:
            span = _by_comparison(rendering.text, template, messages, tools, number, nonce)
            span = span or _by_search(rendering.text, _text(message), position)
            if span is None:
                raise BadInput(
                    f"message {number + 1} (assistant) cannot be found in what the chat template "
                    "renders, so it could not be learned",
                    "leave this conversation out, or give another prompt format",
                )
            start, end = span
            rendering.notes.append("found-by-comparison")
        rendering.spans[number] = (start, end)
        position = end


def _marked(
    messages: Sequence[Message], nonce: str, inner: tuple[int, int]
) -> list[dict[str, Any]]:
    """The messages with marks around the answers and the system text, outside or inside
    of the white space that surrounds them.
    """
    return [
        _with_text(message, partial(_mark, nonce=nonce, number=number, inner=inner))
        if message["role"] in ("assistant", "system")
        else dict(message)
        for number, message in enumerate(messages)
    ]


def _mark(text: str, nonce: str, number: int, inner: tuple[int, int]) -> str:
    core = text.strip()
    if not core:
        return text
    lead = text[: len(text) - len(text.lstrip())]
    trail = text[len(text.rstrip()) :]
    left, right = f"{nonce}L{number}E", f"{nonce}R{number}E"
    before = lead + left if inner[0] else left + lead
    after = right + trail if inner[1] else trail + right
    return before + core + after


def _read_marks(text: str | None, nonce: str) -> tuple[str, dict[tuple[int, str], int]] | None:
    """The text without marks and where each stood, but for marks that stand twice."""
    if text is None:
        return None
    pieces: list[str] = []
    marks: dict[tuple[int, str], int] = {}
    repeated = set()
    position = length = 0
    for match in re.finditer(rf"{nonce}([LR])(\d+)E", text):
        pieces.append(text[position : match.start()])
        length += len(pieces[-1])
        position = match.end()
        key = (int(match[2]), match[1])
        if key in marks:
            repeated.add(key)
        marks[key] = length
    for key in repeated:
        del marks[key]
    return "".join([*pieces, text[position:]]), marks


def _by_comparison(
    text: str,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    number: int,
    nonce: str,
) -> Span | None:
    """What differs when the answer is another one: reasoning and tool calls with it."""
    answer = {"role": "assistant", "content": nonce}
    other = _try(template, [*messages[:number], answer, *messages[number + 1 :]], tools)
    if other is None or other.count(nonce) != 1:
        return None
    before, after = other.split(nonce)
    end = len(text) - _shared(text[::-1], after[::-1])
    prompt = _try(template, messages[:number], tools, generate=True) if number else None
    if prompt is not None and text.startswith(prompt):
        start = len(prompt)
    else:
        start = _shared(text, before)
    return (start, end) if start < end else None


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _by_search(text: str, answer: str, position: int) -> Span | None:
    """Where the answer stands, if it stands there exactly once."""
    answer = answer.strip()
    if not answer or text.count(answer, position) != 1:
        return None
    start = text.index(answer, position)
    return start, start + len(answer)


def _try(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    *,
    generate: bool = False,
) -> str | None:
    try:
        return template.render(messages, tools, generate=generate)
    except BadInput:
        return None


def _text(message: Message) -> str:
    """The message's text, whether it is one string or a list of blocks."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else ()
    return "".join(b["text"] for b in blocks if isinstance(b, Mapping) and "text" in b)


def _with_text(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """The message with its text changed; of several text blocks only a single one is."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    blocks = content if isinstance(content, list) else []
    texts = [b for b in blocks if isinstance(b, Mapping) and isinstance(b.get("text"), str)]
    if len(texts) != 1:
        return dict(message)
    changed = [{**b, "text": change(b["text"])} if b is texts[0] else b for b in blocks]
    return {**message, "content": changed}
