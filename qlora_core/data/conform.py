"""Messages in the forms that chat templates want: text or blocks, this key or that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_core.data.turns import ROLES
from qlora_core.errors import BadInput

Message = Mapping[str, Any]
_SHARE_GPT = {"user": "human", "assistant": "gpt"}


def checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with ``role`` and ``content``; ShareGPT's ``from`` and ``value`` do as well.

    Raises BadInput for a message without a role, or no message at all.
    """
    if not messages:
        raise BadInput("the conversation is empty", "leave it out")
    found = []
    for number, message in enumerate(messages):
        given = dict(message) if isinstance(message, Mapping) else {}
        if "role" not in given and given.get("from") in ROLES:
            given["role"] = ROLES[given.pop("from")]
            given["content"] = given.pop("value", None)
        if not isinstance(given.get("role"), str):
            raise BadInput(
                f"message {number + 1} of the conversation has no role",
                "messages look like {'role': 'user', 'content': '...'}",
            )
        found.append(given)
    return found


def text_of(message: Message) -> str:
    """The message's text, whether it is one string or a list of blocks."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else ()
    return "".join(b["text"] for b in blocks if isinstance(b, Mapping) and "text" in b)


def with_text(message: Message, change: Callable[[str], str]) -> dict[str, Any]:
    """The message with its text changed. A list with several text blocks stays as it is."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    blocks = content if isinstance(content, list) else []
    texts = [b for b in blocks if isinstance(b, Mapping) and isinstance(b.get("text"), str)]
    if len(texts) != 1:
        return dict(message)
    changed = [{**b, "text": change(b["text"])} if b is texts[0] else b for b in blocks]
    return {**message, "content": changed}


def as_blocks(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Texts as lists of one text block, which templates of vision models want."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m.get("content"), str)
        else dict(m)
        for m in messages
    ]


def as_text(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Lists of text blocks as one text; lists with anything else in them stay."""
    return [
        {**m, "content": text_of(m)}
        if isinstance(m.get("content"), list) and all("text" in b for b in m["content"])
        else dict(m)
        for m in messages
    ]


def as_share_gpt(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with ``from`` and ``value`` beside ``role`` and ``content``."""
    return [
        {**m, "from": _SHARE_GPT.get(m["role"], m["role"]), "value": m.get("content")}
        for m in messages
    ]


def without_none(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages without keys that hold None, as transformers 5.23 shows them."""
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def with_written_arguments(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Tool calls with their arguments as JSON text, which a few templates join to text."""
    written = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls") or ():
            function = dict(call.get("function", {}))
            if isinstance(function.get("arguments"), Mapping):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            calls.append({**call, "function": function})
        written.append({**message, "tool_calls": calls} if calls else dict(message))
    return written
