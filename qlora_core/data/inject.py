"""Keep control tokens that are spelt out in data from becoming control tokens.

The data is rendered a second time with every such string replaced by letters of the same
length. What is then still a control token was written by the template; the original text is
encoded with those, and only those, as control tokens. Where the replacement changes what the
template does (it looks for ``</think>`` in an answer), the string is the template's to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qlora_core.data.backend import FILLER, Backend, Control, Tokens
from qlora_core.data.conform import Message
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput

NEUTRALISED = "injection-neutralised"
IN_ANSWER = "control-token-in-answer-neutralised"
READ = "control-token-read-by-template"


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


def _defuse(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    numbers: Sequence[int],
) -> tuple[str, list[str]]:
    """``text`` with letters in place of the control tokens that the data spells out."""
    hide = backend.replace_control
    tools = _map(tools, hide)
    hidden = [_hide(m, hide) if n in numbers else m for n, m in enumerate(messages)]
    inert = _same_but_filler(template, hidden, tools, text)
    if inert is not None:
        answers = [n for n in numbers if messages[n]["role"] == "assistant"]
        return inert, [IN_ANSWER] * len(answers) + [NEUTRALISED] * (len(answers) < len(numbers))
    return _defuse_by_group(backend, template, messages, tools, text, numbers)


def _defuse_by_group(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    numbers: Sequence[int],
) -> tuple[str, list[str]]:
    """As `_defuse`, one kind of token in one message at a time: what a template reads stays."""
    notes: list[str] = []
    left_over: list[str] = []
    hidden = list(messages)
    inert = _same_but_filler(template, hidden, tools, text)
    if inert is None:
        raise BadInput(
            "a tool's description spells out control tokens that the chat template reads",
            "take them out of the tools, or allow them by trusted roles",
        )
    for number in numbers:
        answer = messages[number]["role"] == "assistant"
        for group in _groups(t for leaf in _data(messages[number]) for t in backend.spelt(leaf)):
            changed = list(hidden)
            changed[number] = _hide(hidden[number], _hiding(group))
            found = _same_but_filler(template, changed, tools, text)
            if found is not None:
                hidden, inert = changed, found
            elif not answer:
                left_over += _data(messages[number])
            notes.append(READ if answer and found is None else IN_ANSWER if answer else NEUTRALISED)
    for leaf in map(str.strip, left_over):
        if text.count(leaf) == 1:
            start = text.index(leaf)
            inert = inert[:start] + backend.replace_control(leaf) + inert[start + len(leaf) :]
        elif backend.spells_control(leaf):
            notes.append(READ)
    return inert, notes


def _groups(tokens: Iterable[str]) -> list[list[str]]:
    """Tokens that belong together: an opening one and its closing one, by their letters."""
    groups: dict[str, list[str]] = {}
    for token in sorted(set(tokens), key=len, reverse=True):
        groups.setdefault("".join(filter(str.isalnum, token)), []).append(token)
    return list(groups.values())


def _hiding(group: Sequence[str]) -> Callable[[str], str]:
    pattern = re.compile("|".join(map(re.escape, group)))
    return lambda text: pattern.sub(lambda match: FILLER * len(match[0]), text)


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


def _hide(message: Message, hide: Callable[[str], str]) -> dict[str, Any]:
    return {k: v if k == "role" else _map(v, hide) for k, v in message.items()}


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
