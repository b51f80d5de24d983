"""Render conversations with a tokenizer's chat template: the same text as transformers' own.

The environment (sandbox, filters, extensions) is transformers', in a process of its own whose
time and memory are bounded. The one difference is the clock: ``strftime_now`` tells a fixed
date, so that the same rows give the same ids every day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from transformers.utils import chat_template_utils

from qlora_core.data import bounded
from qlora_core.data.conform import (
    Message,
    as_blocks,
    as_share_gpt,
    as_text,
    with_written_arguments,
    without_none,
)
from qlora_core.errors import BadInput

CLOCK = datetime(2024, 7, 26, 12)
"""What templates are told when they ask for today's date: see `set_clock`."""
QUESTION, ANSWER = "Probe the question", "Probe the answer"

_clock = CLOCK
_REMEDY = "change the conversation, or give another prompt format"


def set_clock(moment: datetime) -> None:
    """Fix the date that templates print, for this process. The run record holds it."""
    global _clock
    _clock = moment


def clock() -> datetime:
    """The date that templates print."""
    return _clock


class ChatTemplate:
    """One chat template with a tokenizer's special tokens and fixed arguments."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self.source = source
        self.uses_clock = "strftime_now" in source
        self.arguments = {**special_tokens, **arguments}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        generate: bool = False,
    ) -> str:
        """The conversation's text; ``generate`` appends the prompt for the next answer.

        Raises BadInput with the template's own words when the template refuses, and its kind
        TemplateExhausted where it takes more than the bounds of `bounded`.
        """
        refusal: bounded.TemplateRefused | None = None
        for form in self._forms(messages):
            try:
                return self._render(self._context(form, tools, generate))
            except bounded.TemplateRefused as error:
                refusal = refusal or error
        raise BadInput(f"the chat template refuses this conversation: {refusal}", _REMEDY)

    def render_twice(
        self, messages: Sequence[Message], other: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[str, str | None]:
        """Two conversations in one go; None for an ``other`` that the template refuses."""
        contexts = [
            self._context(next(self._forms(form)), tools, False) for form in (messages, other)
        ]
        with suppress(bounded.TemplateRefused):
            text, second = bounded.render_all(self.source, contexts, clock=_clock.isoformat())
            return text, second
        return self.render(messages, tools), self.try_render(other, tools)

    def try_render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        generate: bool = False,
    ) -> str | None:
        """As `render`, but None where the template refuses."""
        try:
            return self.render(messages, tools, generate=generate)
        except bounded.TemplateExhausted:
            raise
        except BadInput:
            return None

    def generation_blocks(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> list[tuple[int, int]]:
        """The character spans of the template's ``{% generation %}`` blocks, if it has any.

        ``messages`` are some that `render` takes.
        """
        context = self._context(next(self._forms(messages)), tools, False)
        return bounded.generation_blocks(self.source, context)

    @cached_property
    def takes(self) -> str:
        """How the template wants messages: ``text``, ``blocks`` or ``share_gpt`` keys."""
        probe = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        forms = {"text": probe, "blocks": as_blocks(probe), "share_gpt": as_share_gpt(probe)}
        return next((name for name, form in forms.items() if self._shows(form)), "text")

    @cached_property
    def _takes_blocks_too(self) -> bool:
        return self._shows(as_blocks([{"role": "user", "content": QUESTION}]), QUESTION)

    def _shows(self, messages: Sequence[Message], *texts: str) -> bool:
        """Whether the texts of ``messages`` stand in their rendering, and no raw data does."""
        try:
            text = self._render(self._context(messages, None, False))
        except bounded.TemplateRefused:
            return False
        return all(t in text for t in texts or (QUESTION, ANSWER)) and "'type'" not in text

    def _forms(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        """The messages as they are, then in the other forms that templates are known to want."""
        if self.takes == "blocks":
            messages = as_blocks(messages)
        elif self.takes == "share_gpt":
            messages = as_share_gpt(messages)
        elif any(isinstance(m.get("content"), list) for m in messages):
            messages = messages if self._takes_blocks_too else as_text(messages)
        bare = without_none(messages)
        yield bare
        if any(None in message.values() for message in messages):
            yield messages
        if any(message.get("tool_calls") for message in bare):
            yield with_written_arguments(bare)

    def _render(self, context: Mapping[str, Any]) -> str:
        return bounded.render(self.source, context, clock=_clock.isoformat())

    def _context(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, generate: bool
    ) -> dict[str, Any]:
        return {
            "documents": None,
            **self.arguments,
            "messages": _alias(_plain(list(messages))),
            "tools": _plain([schema_of(tool) for tool in tools]) if tools else None,
            "add_generation_prompt": generate,
        }


def schema_of(tool: Any) -> Any:
    """A tool's JSON schema: as it is, or from a Python function's signature and docstring."""
    return chat_template_utils.get_json_schema(tool) if callable(tool) else tool


def _same(value: Any) -> Any:
    return value


# transformers 5.23 shows templates plain JSON only, and one more name for a message's reasoning;
# earlier releases have neither function.
_plain = getattr(chat_template_utils, "_plain_template_data", _same)
_alias = getattr(chat_template_utils, "_alias_reasoning_fields", _same)
