"""Render a conversation whole: no system text is lost, and no template is asked too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_core.data.conform import Message, text_of, with_text
from qlora_core.data.notes import SYSTEM_MERGED
from qlora_core.data.spans import Rendering, locate
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput


def render_whole(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None
) -> tuple[Rendering, list[dict[str, Any]]]:
    """The rendering, and the messages as they were rendered.

    A system text that the template refuses or leaves out is put before the user turn that
    follows it. Raises BadInput where the template refuses the conversation itself.
    """
    given = [dict(message) for message in messages]
    systems = [n for n, message in enumerate(given) if message["role"] == "system"]
    try:
        rendering = locate(template, given, tools)
    except BadInput:
        if not systems:
            raise
        merged = merge_system(given, systems)
        rendering = locate(template, merged, tools)
    else:
        if not rendering.missing:
            return rendering, given
        merged = merge_system(given, rendering.missing)
        rendering = locate(template, merged, tools)
    rendering.notes.append(SYSTEM_MERGED)
    return rendering, merged


def render_prompt(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The text that asks for the next answer, its system texts where training puts them."""
    if any(message["role"] == "system" for message in messages):
        messages = render_whole(template, messages, None)[1]
    return template.render(messages, generate=True)


def merge_system(messages: Sequence[Message], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The messages with the system texts ``numbers`` moved into the user turns that follow."""
    merged: list[dict[str, Any]] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if number in numbers:
            waiting.append(text_of(message))
        elif waiting and message["role"] == "user":
            merged.append(_with_before(message, waiting))
            waiting = []
        else:
            merged.append(dict(message))
    if waiting:
        merged.insert(0, {"role": "user", "content": "\n\n".join(waiting)})
    return merged


def _with_before(message: Message, texts: Sequence[str]) -> dict[str, Any]:
    """The message with texts before its own; in one of many blocks, or none, as a block."""
    before = "\n\n".join(texts)
    changed = with_text(message, lambda text: f"{before}\n\n{text}")
    if changed != dict(message):
        return changed
    blocks = message.get("content") or ()
    return {**message, "content": [{"type": "text", "text": f"{before}\n\n"}, *blocks]}
