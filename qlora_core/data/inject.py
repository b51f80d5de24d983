"""Keep control tokens that are spelt out in data from becoming control tokens.

The data is rendered a second time with every such string replaced by letters of the same
length. What is then still a control token was written by the template; the original text is
encoded with those, and only those, as control tokens. Where the replacement changes what the
template does (it looks for ``</think>`` in an answer), the string is the template's to read.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_core.data.backend import FILLER, Backend, Control, Tokens
from qlora_core.data.conform import Message
from qlora_core.data.notes import IN_ANSWER, NEUTRALISED, READ
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput


def encode_untrusted(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    *,
    suffix: str = "",
    trusted_roles: Sequence[str] = (),
) -> tuple[Tokens, Control, list[str]]:
    """The tokens of ``text + suffix``, its control tokens, and what was done, as codes.

    ``text`` is what ``template`` renders of ``messages``; ``suffix`` is ours.
    """
    whole = text + suffix
    found = [
        number
        for number, message in enumerate(messages)
        if message["role"] not in trusted_roles and any(map(backend.spells_control, _data(message)))
    ]
    if not found and not any(map(backend.spells_control, _leaves(tools))):
        tokens = backend.encode(whole)
        return tokens, backend.control_tokens(tokens, whole), []
    inert, notes = _defuse(backend, template, messages, tools, text, found)
    kept = backend.control_tokens(backend.encode(inert + suffix), inert + suffix)
    return backend.encode_inert(whole, kept), kept, notes


@dataclass
class _Spelt:
    """Control tokens of one kind that one message spells out."""

    number: int
    tokens: list[str]
    in_answer: bool

    def hidden_in(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with letters in place of these tokens."""
        return self._changed(messages, lambda token: FILLER * len(token))

    def marked_in(self, messages: Sequence[Message], mark: str) -> list[Message]:
        """The messages with a mark after each of these tokens."""
        return self._changed(messages, lambda token: token + mark)

    def _changed(
        self, messages: Sequence[Message], replacement: Callable[[str], str]
    ) -> list[Message]:
        pattern = re.compile("|".join(map(re.escape, self.tokens)))
        changed = list(messages)
        message = changed[self.number]
        changed[self.number] = {
            key: value
            if key == "role"
            else _map(value, lambda text: pattern.sub(lambda m: replacement(m[0]), text))
            for key, value in message.items()
        }
        return changed


def _defuse(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    numbers: Sequence[int],
) -> tuple[str, list[str]]:
    """``text`` with letters in place of the control tokens that the data spells out."""
    hidden: Sequence[Message] = messages
    hidden_tools = _map(tools, backend.replace_control)
    inert = _same_but_filler(template, hidden, hidden_tools, text)
    if inert is None:
        raise BadInput(
            "a tool's description spells out control tokens that the chat template reads",
            "take them out of the tools",
        )
    notes = [NEUTRALISED] if hidden_tools != tools else []
    while spelt := [s for s in _spelt(backend, hidden, numbers) if s.tokens]:
        before = hidden
        for group in spelt:
            changed = group.hidden_in(hidden)
            found = _same_but_filler(template, changed, hidden_tools, text)
            if found is None or (
                group.in_answer and _reads(template, messages, tools, text, group)
            ):
                continue
            hidden, inert = changed, found
            notes.append(IN_ANSWER if group.in_answer else NEUTRALISED)
        if hidden is before:
            break
    for group in spelt:
        done = None if group.in_answer else _search(backend, messages[group.number], text, inert)
        inert = done or inert
        notes.append(NEUTRALISED if done else READ)
    return inert, notes


def _spelt(backend: Backend, messages: Sequence[Message], numbers: Sequence[int]) -> list[_Spelt]:
    return [
        _Spelt(number, group, messages[number]["role"] == "assistant")
        for number in numbers
        for group in _groups(t for leaf in _data(messages[number]) for t in backend.spelt(leaf))
    ]


def _reads(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    group: _Spelt,
) -> bool:
    """Whether the template acts on these tokens: then what follows them does not stay in place."""
    mark = secrets.token_hex(8)
    try:
        marked = template.render(group.marked_in(messages, mark), tools)
    except BadInput:
        return True
    return marked.replace(mark, "") != text


def _search(backend: Backend, message: Message, text: str, inert: str) -> str | None:
    """``inert`` with the message's text found in it and hidden there, if it stands there once."""
    for leaf in map(str.strip, _data(message)):
        if backend.spells_control(leaf):
            if text.count(leaf) != 1:
                return None
            start = text.index(leaf)
            inert = inert[:start] + backend.replace_control(leaf) + inert[start + len(leaf) :]
    return inert


def _groups(tokens: Iterable[str]) -> list[list[str]]:
    """Tokens that belong together: an opening one and its closing one, by their letters."""
    groups: dict[str, list[str]] = {}
    for token in sorted(set(tokens), key=len, reverse=True):
        groups.setdefault("".join(filter(str.isalnum, token)), []).append(token)
    return list(groups.values())


def _same_but_filler(
    template: ChatTemplate, messages: Sequence[Message], tools: Any, text: str
) -> str | None:
    """The rendering of ``messages`` if it is ``text`` but for letters put in."""
    try:
        found = template.render(messages, tools)
    except BadInput:
        return None
    if len(found) != len(text):
        return None
    same = all(a == b or b == FILLER for a, b in zip(text, found, strict=True))
    return found if same else None


def _data(message: Message) -> Iterator[str]:
    """The texts of a message that come from data: all but its role."""
    return _leaves({key: value for key, value in message.items() if key != "role"})


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it changed; keys of mappings stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map(item, change) for item in value]
    return value


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
