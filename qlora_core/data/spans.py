"""Find the answers in a rendered conversation.

The conversation is rendered twice, plainly and with one-time marks around each answer. Where
both agree once the marks are taken out, the marks tell where the answers are, whatever the
template does. Where they disagree (a template trims, splits reasoning off, rewrites history),
the marks move inwards; what is still missing, and what belongs to a turn besides its text
(reasoning, tool calls), is found by comparing renderings.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from qlora_core.data.conform import Message, text_of, with_text
from qlora_core.data.notes import CALLS_DROPPED, COMPARED, EMPTY, REASONING_DROPPED, TRIMMED
from qlora_core.data.shown import Hidden, hidden_in, reasoning_of
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput

MARKS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Where the marks go: outside or inside of the white space before and after a text."""


class Answer(NamedTuple):
    """Where an assistant's turn stands in the text: characters ``start`` to ``end``.

    ``last`` is the end of the data that it shows. After it the template closes the turn;
    for tool calls some of that lies before ``end``.
    """

    start: int
    end: int
    last: int


@dataclass
class Rendering:
    """The text of a conversation of so many ``messages``; by number of a message, the answers."""

    text: str
    messages: int
    answers: dict[int, Answer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    """System messages that the template leaves out."""
    hidden: Hidden = field(default_factory=Hidden)


@dataclass(frozen=True)
class _Conversation:
    template: ChatTemplate
    messages: Sequence[Message]
    tools: Sequence[Any] | None
    nonce: str

    def render(self, messages: Sequence[Message], *, generate: bool = False) -> str | None:
        """The text of other messages, None where the template refuses them."""
        return self.template.try_render(messages, self.tools, generate=generate)


def locate(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None
) -> Rendering:
    """Render ``messages`` and find the answers in the text.

    Raises BadInput where the template refuses, or where an answer cannot be found for sure.
    """
    nonce = secrets.token_hex(8)
    conversation = _Conversation(template, messages, tools, nonce)
    plain, marked = template.render_twice(messages, _marked(conversation, MARKS[0]), tools)
    rendering = Rendering(plain, len(messages))
    if nonce in plain:
        raise BadInput("a one-time mark occurs in the data", "try again")
    rendering.hidden = hidden_in(template, messages, tools, plain)
    rendering.notes += rendering.hidden.notes
    marks: Mapping[tuple[int, str], int] = {}
    for inner in MARKS:
        if inner != MARKS[0]:
            marked = conversation.render(_marked(conversation, inner))
        text, found = _read_marks(marked, nonce)
        if text == rendering.text:
            marks = found
            if inner != (0, 0):
                rendering.notes.append(TRIMMED)
            break
    position = 0
    for number, message in enumerate(messages):
        left, right = marks.get((number, "L")), marks.get((number, "R"))
        if message["role"] == "system":
            if left is None and text_of(message).strip() not in rendering.text:
                rendering.missing.append(number)
        elif message["role"] == "assistant":
            position = _add(rendering, conversation, number, left, right, position)
    return rendering


def _add(
    rendering: Rendering,
    conversation: _Conversation,
    number: int,
    left: int | None,
    right: int | None,
    position: int,
) -> int:
    """Add the answer of message ``number``; return where the next may begin."""
    message = conversation.messages[number]
    reasoning = reasoning_of(message)
    calls = message.get("tool_calls")
    if not (text_of(message).strip() or reasoning or calls):
        rendering.notes.append(EMPTY)
        return position
    if (REASONING_DROPPED, number) in rendering.hidden.wholly:
        reasoning = ""
    if left is not None and right is not None and not reasoning and not calls:
        answer = Answer(left, right, right)
    else:
        found = _compare(
            rendering.text, conversation, number, left, right, reasoning, position
        ) or _by_block(rendering.text, conversation, number)
        if found is None:
            raise BadInput(
                f"message {number + 1} (assistant) cannot be found in what the chat template "
                "renders, so it could not be learned",
                "leave this conversation out, or give another prompt format",
            )
        answer = found
        rendering.notes.append(COMPARED)
    if left is None and (CALLS_DROPPED, number) in rendering.hidden.wholly:
        return answer.end
    rendering.answers[number] = answer
    return answer.end


def _compare(
    text: str,
    conversation: _Conversation,
    number: int,
    left: int | None,
    right: int | None,
    reasoning: str,
    position: int,
) -> Answer | None:
    """The turn from what other renderings have in common with this one."""
    messages = conversation.messages
    prompt = conversation.render(messages[:number], generate=True) if number else None
    stand_in = {"role": "assistant", "content": conversation.nonce}
    other = conversation.render([*messages[:number], stand_in, *messages[number + 1 :]]) or ""
    before, found, after = other.partition(conversation.nonce)
    start: int | None = None
    if prompt is not None and text.startswith(prompt):
        start = len(prompt)
    elif found:
        start = shared_start(text, before)
    if start is None:
        return _search(text, text_of(messages[number]).strip(), position)
    if left is not None and (not reasoning or reasoning not in text[start:left]):
        start = left
    if right is not None and not messages[number].get("tool_calls"):
        return Answer(start, right, right) if start <= right else None
    closed = conversation.render(messages[: number + 1]) or ""
    ends = [shared_start(text, closed)]
    if found:
        ends.append(len(text) - shared_start(text[::-1], after[::-1]))
    stands = [_places(text, messages[number].get("tool_calls"), start, end) for end in ends]
    _, end, last = min(
        (-len(s), e, max(s, default=start)) for e, s in zip(ends, stands, strict=True)
    )
    last = max(last, right or 0)
    return Answer(start, max(last, len(text[:end].rstrip())), last)


def _places(text: str, calls: Any, start: int, end: int) -> list[int]:
    """Where the values of tool calls end that stand between ``start`` and ``end``."""
    found = ((text.rfind(leaf, start, end), leaf) for leaf in _leaves(calls) if leaf)
    return [at + len(leaf) for at, leaf in found if at >= 0]


def _by_block(text: str, conversation: _Conversation, number: int) -> Answer | None:
    """The template's own ``{% generation %}`` block, where each answer has one."""
    said = [n for n, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    blocks = conversation.template.generation_blocks(conversation.messages, conversation.tools)
    if len(blocks) != len(said):
        return None
    start, end = blocks[said.index(number)]
    return Answer(start, len(text[:end].rstrip()), start)


def _search(text: str, answer: str, position: int) -> Answer | None:
    """Where the answer stands, if it stands there exactly once."""
    if not answer or text.count(answer, position) != 1:
        return None
    start = text.index(answer, position)
    return Answer(start, start + len(answer), start + len(answer))


def shared_start(a: str, b: str) -> int:
    """How many characters two texts have in common at their start."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _leaves(value: Any) -> Iterator[str]:
    """The values in a tool call, as text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("type", "id"):
                yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)


def _marked(conversation: _Conversation, inner: tuple[int, int]) -> list[dict[str, Any]]:
    """The messages with marks around the answers and the system text."""
    return [
        with_text(message, partial(_mark, nonce=conversation.nonce, number=n, inner=inner))
        if message["role"] in ("assistant", "system")
        else dict(message)
        for n, message in enumerate(conversation.messages)
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


def _read_marks(text: str | None, nonce: str) -> tuple[str | None, dict[tuple[int, str], int]]:
    """The text without marks and where each stood, but for marks that stand twice."""
    if text is None:
        return None, {}
    first, *rest = text.split(nonce)
    pieces, length = [first], len(first)
    marks: dict[tuple[int, str], int] = {}
    repeated = set()
    for piece in rest:  # side, number of the message, "E", and the text that follows
        number, _, follows = piece[1:].partition("E")
        if not number.isdigit():
            return None, {}  # the template cut a mark
        key = (int(number), piece[0])
        if key in marks:
            repeated.add(key)
        marks[key] = length
        pieces.append(follows)
        length += len(follows)
    for key in repeated:
        del marks[key]
    return "".join(pieces), marks
