"""What of a conversation a template does not show: tools, calls, results, reasoning.

Whether a call stands in a text cannot be told by looking for its values: ``""`` stands in every
text, ``"en"`` in ``<|end|>``. So the conversation is rendered once more with a one-time mark
behind each of these data, and a datum is shown where its mark is.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_core.data.conform import Message, text_of, with_text
from qlora_core.data.notes import (
    BESIDE_DROPPED,
    CALLS_DROPPED,
    REASONING_DROPPED,
    RESULTS_DROPPED,
    TOOLS_DROPPED,
)
from qlora_core.data.template import ChatTemplate, schema_of

Place = tuple[str, int]
"""What it would be to lose something, as a code, and the number of the message: -1 for tools."""
_THOUGHTS = ("reasoning_content", "thinking")


@dataclass(frozen=True)
class Hidden:
    """What a rendering leaves out: ``partly``, at least one datum there; ``wholly``, all.

    What stands where it cannot be learned is ``partly`` left out.
    """

    partly: frozenset[Place] = frozenset()
    wholly: frozenset[Place] = frozenset()

    @property
    def notes(self) -> list[str]:
        """The codes, each once."""
        return sorted({code for code, _ in self.partly})


def reasoning_of(message: Message) -> str:
    """An assistant's reasoning beside its text, without white space around it."""
    return str(next(filter(None, map(message.get, _THOUGHTS)), "")).strip()


def hidden_in(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] | None, text: str
) -> Hidden:
    """What ``text``, the rendering of ``messages``, does not show.

    Conversations without tools and reasoning are not rendered again. A template that refuses
    the marks is believed where the data themselves stand in ``text``.
    """
    marks = _Marks(secrets.token_hex(8))
    marked = [marks.message(number, message) for number, message in enumerate(messages)]
    marked_tools = [marks.tool(tool) for tool in tools] if tools else None
    if not marks.placed:
        return Hidden()
    probe = template.try_render(marked, marked_tools)
    if probe is None:
        found = [n for n, (_, datum) in enumerate(marks.placed) if datum in text]
    else:
        found = list(map(int, re.findall(rf"{marks.nonce}(\d+)e", probe.lower())))
    shown = [marks.placed[n][0] for n in found]
    lost = {place for n, (place, _) in enumerate(marks.placed) if n not in found}
    return Hidden(frozenset(lost | _out_of_turn(shown)), frozenset(lost.difference(shown)))


def _out_of_turn(shown: Sequence[Place]) -> set[Place]:
    """Calls that stand before the text beside them, in Gemma 4 with the result in between."""
    first = {place: position for position, place in reversed([*enumerate(shown)])}
    return {
        (code, number)
        for (code, number), position in first.items()
        if code == CALLS_DROPPED and position < first.get((BESIDE_DROPPED, number), -1)
    }


def _thought_in(text: str) -> str:
    """Reasoning within a text: some templates take it out of earlier turns, or of all."""
    before, end, _ = text.partition("</think>")
    return before.rpartition("<think>")[2].strip() if end else ""


@dataclass
class _Marks:
    """Puts marks into data, and remembers which."""

    nonce: str
    placed: list[tuple[Place, str]] = field(default_factory=list)

    def message(self, number: int, message: Message) -> dict[str, Any]:
        """The message with marks behind what a template may leave out."""
        marked, role = dict(message), message["role"]
        said = text_of(message).strip()
        if role == "tool" and said:
            return with_text(message, lambda text: self._mark((RESULTS_DROPPED, number), text))
        if role != "assistant":
            return marked
        called, beside = (CALLS_DROPPED, number), (BESIDE_DROPPED, number)
        thought = (REASONING_DROPPED, number)
        if reasoning := reasoning_of(message):
            mark = self._mark(thought, reasoning)
            marked |= {key: mark for key in _THOUGHTS if message.get(key)}
        elif within := _thought_in(said):
            marked = with_text(
                marked, lambda text: text.replace(within, self._mark(thought, within), 1)
            )
        if message.get("tool_calls"):
            if said:
                marked = with_text(marked, lambda text: self._mark(beside, text))
            marked["tool_calls"] = [self._call(called, call) for call in message["tool_calls"]]
        return marked

    def tool(self, tool: Any) -> Any:
        """The tool with a mark behind its name."""
        tool = schema_of(tool)
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return tool
        named = {**function, "name": self._mark((TOOLS_DROPPED, -1), function["name"])}
        return {**tool, "function": named} if "function" in tool else named

    def _call(self, place: Place, call: Any) -> Any:
        function = call.get("function", call)
        marked = {**function, "name": self._mark(place, str(function.get("name", "")))}
        if isinstance(function.get("arguments"), Mapping):
            marked["arguments"] = self._values(place, function["arguments"])
        return {**call, "function": marked} if "function" in call else marked

    def _values(self, place: Place, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._values(place, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._values(place, item) for item in value]
        return self._mark(place, str(value))

    def _mark(self, place: Place, text: str) -> str:
        self.placed.append((place, text.strip()))
        return f"{text.rstrip()}{self.nonce}{len(self.placed) - 1}e"
