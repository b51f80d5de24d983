"""Render conversations with a tokenizer's chat template: the same text as transformers' own.

The environment (sandbox, filters, extensions) is transformers'. The one difference is the
clock: ``strftime_now`` tells a fixed date, so that the same rows give the same ids every day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from qlora_core.errors import BadInput

Message = Mapping[str, Any]
CLOCK = datetime(2024, 7, 26, 12)
"""What templates are told when they ask for today's date: see `set_clock`."""

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
    """One compiled chat template with a tokenizer's special tokens and fixed arguments."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self.source = source
        self.uses_clock = "strftime_now" in source
        self.arguments = {**special_tokens, **arguments}
        try:
            environment = chat_template_utils._compile_jinja_template(source).environment
            self._environment = environment
            self._template = environment.from_string(source, globals={"strftime_now": _now})
        except TemplateError as error:
            raise BadInput(f"the chat template is no valid Jinja: {error}", _REMEDY) from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        generate: bool = False,
    ) -> str:
        """The conversation's text; ``generate`` appends the prompt for the next answer.

        Raises BadInput with the template's own words when the template refuses.
        """
        context = self._context(messages, tools, generate)
        try:
            text: str = self._template.render(context)
        except Exception as error:  # a template runs arbitrary expressions over the user's data
            raise _refusal(error) from None
        return text

    def generation_blocks(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> list[tuple[int, int]]:
        """The character spans of the template's ``{% generation %}`` blocks, if it has any."""
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        try:
            with self._environment.activate_tracker(blocks, spans):
                for block in self._template.generate(self._context(messages, tools, False)):
                    blocks.append(block)  # noqa: PERF402  (the tracker reads the list as it grows)
        except Exception as error:
            raise _refusal(error) from None
        return spans

    def _context(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, generate: bool
    ) -> dict[str, Any]:
        return {
            **self.arguments,
            "messages": plain_messages(messages),
            "tools": _plain(list(tools)) if tools else None,
            "documents": self.arguments.get("documents"),
            "add_generation_prompt": generate,
        }


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What a template sees of the messages: plain JSON values, without keys that hold None."""
    plain = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return list(_alias(_plain(plain)))


def _now(form: str) -> str:
    return _clock.strftime(form)


def _refusal(error: Exception) -> BadInput:
    words = str(error) or type(error).__name__
    return BadInput(f"the chat template refuses this conversation: {words}", _REMEDY)


def _same(value: Any) -> Any:
    return value


# transformers 5.23 shows templates plain JSON only, and one more name for a message's reasoning;
# earlier releases have neither function.
_plain = getattr(chat_template_utils, "_plain_template_data", _same)
_alias = getattr(chat_template_utils, "_alias_reasoning_fields", _same)
