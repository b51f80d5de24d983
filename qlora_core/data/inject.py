"""Keep control tokens that are spelt out in data from becoming control tokens.

The data is rendered a second time with every such string replaced by letters of the same
length. What is then still a control token was written by the template; the original text is
encoded with those, and only those, as control tokens. Where the replacement changes what the
template does (it looks for ``</think>`` in an answer), the string is the template's to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qlora_core.data.backend import Backend, Span, Tokens
from qlora_core.data.template import ChatTemplate, Message
from qlora_core.errors import BadInput

FILLER = "x"
Control = list[tuple[int, Span]]


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
    checked = [m for m in messages if m["role"] not in trusted_roles]
    if not any(backend.spells_control(leaf) for leaf in _leaves([checked, tools])):
        tokens = backend.encode(text + suffix)
        return tokens, backend.control_tokens(tokens, text + suffix), []
    inert, notes = _defuse(backend, template, messages, tools, text, trusted_roles)
    kept = backend.control_tokens(backend.encode(inert + suffix), inert + suffix)
    return backend.encode_inert(text + suffix, kept), kept, notes


def _defuse(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    trusted_roles: Sequence[str],
) -> tuple[str, list[str]]:
    """``text`` with letters in place of the control tokens that the data spells out."""

    def hide(string: str) -> str:
        return backend.replace_control(string, lambda token: FILLER * len(token))

    def hidden(message: Message) -> dict[str, Any]:
        return dict(message) if message["role"] in trusted_roles else _hide_in(message, hide)

    inert = _same_but_filler(template, [hidden(m) for m in messages], _map(tools, hide), text)
    if inert is not None:
        return inert, ["injection-neutralised"]
    return _defuse_one_by_one(backend, template, messages, tools, text, trusted_roles)


def _defuse_one_by_one(
    backend: Backend,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    trusted_roles: Sequence[str],
) -> tuple[str, list[str]]:
    """As `_defuse`, message by message and token by token: what the template reads stays."""
    inert, notes = text, []
    for number, message in enumerate(messages):
        if message["role"] in trusted_roles:
            continue
        leaves = list(_leaves({k: v for k, v in message.items() if k != "role"}))
        for token in sorted({t for leaf in leaves for t in backend.spelt(leaf)}):

            def hide(string: str, token: str = token) -> str:
                return string.replace(token, FILLER * len(token))

            changed = [*messages[:number], _hide_in(message, hide), *messages[number + 1 :]]
            found = _same_but_filler(template, changed, tools, text)
            if found is not None:
                inert = _overlay(inert, found, text)
                notes.append("injection-neutralised")
            elif message["role"] != "assistant" and any(leaf.strip() in text for leaf in leaves):
                for leaf in leaves:
                    inert = (
                        inert.replace(leaf.strip(), hide(leaf.strip())) if leaf.strip() else inert
                    )
                notes.append("injection-neutralised")
            else:
                notes.append("control-token-read-by-template")
    return inert, notes


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


def _overlay(inert: str, found: str, text: str) -> str:
    pairs = zip(inert, found, text, strict=True)
    return "".join(new if new != old else before for before, new, old in pairs)


def _hide_in(message: Message, hide: Callable[[str], str]) -> dict[str, Any]:
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
