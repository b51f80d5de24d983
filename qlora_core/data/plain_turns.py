"""What a prompt format has no place for, of tools, calls and results, is written as plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_core.data.encode import Encoded
from qlora_core.data.notes import BESIDE_DROPPED, CALLS_DROPPED, RESULTS_DROPPED, TOOLS_DROPPED
from qlora_core.data.turns import Conversation
from qlora_core.errors import BadInput

TOOLS_WRITTEN = "tools written as plain text: the prompt format leaves them out"
ALL_WRITTEN = (
    "tools, their results and tool calls written as plain text: the prompt format has none, "
    "or leaves some out"
)
_DROPPED = {TOOLS_DROPPED, CALLS_DROPPED, BESIDE_DROPPED, RESULTS_DROPPED}

Messages = list[dict[str, Any]]
Encode = Callable[[Messages, list[Any] | None], Encoded]


def encode_whole(conversation: Conversation, encode: Encode) -> Encoded:
    """The conversation as its prompt format has it, with as little plain text as loses nothing.

    Where only the tools are left out, only they are written as text. Raises BadInput where the
    prompt format refuses the conversation either way.
    """
    messages, tools = conversation.messages, conversation.tools
    plain = as_plain_turns(conversation)
    if plain is None:
        return encode(messages, tools)
    encoded, dropped = _tried(encode, messages, tools)
    if encoded is not None and not dropped:
        return encoded
    if tools and dropped == {TOOLS_DROPPED}:
        encoded, dropped = _tried(encode, with_tools_listed(messages, tools), None)
        if encoded is not None and not dropped:
            conversation.notes.append(TOOLS_WRITTEN)
            return encoded
    conversation.notes.append(ALL_WRITTEN)
    return encode(plain, None)


def _tried(
    encode: Encode, messages: Messages, tools: list[Any] | None
) -> tuple[Encoded | None, set[str]]:
    """The conversation, None where the prompt format refuses it, and what it leaves out."""
    try:
        encoded = encode(messages, tools)
    except BadInput:
        return None, set()
    return encoded, _DROPPED.intersection(encoded.notes)


def as_plain_turns(conversation: Conversation) -> Messages | None:
    """The turns with tools, calls and results as text, for formats that know none of them.

    ``None`` where the conversation has none either.
    """
    messages, tools = conversation.messages, conversation.tools
    if not tools and all(m["role"] != "tool" and not m.get("tool_calls") for m in messages):
        return None
    return with_tools_listed([_plain_turn(message) for message in messages], tools)


def with_tools_listed(messages: Messages, tools: Sequence[Any] | None) -> Messages:
    """The messages with the tools behind the system text, or as one."""
    if not tools:
        return messages
    listed = "Functions that you may call:\n" + json.dumps(tools, ensure_ascii=False)
    if messages[0]["role"] == "system":
        first, *messages = messages
        listed = f"{first['content']}\n\n{listed}"
    return [{"role": "system", "content": listed}, *messages]


def _plain_turn(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    texts: list[str] = [
        message["content"],
        *(json.dumps(call, ensure_ascii=False) for call in calls),
    ]
    thoughts = {key: message[key] for key in ("reasoning_content", "thinking") if key in message}
    role = "user" if message["role"] == "tool" else message["role"]
    return {"role": role, "content": "\n".join(text for text in texts if text), **thoughts}
