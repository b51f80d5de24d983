"""Turn a conversation into text, and say which parts of it are learned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from qlora_core.errors import BadInput

CONTENT = "{content}"
_PLACES = re.compile(r"(\{content\}|\{system\}|\{bos\}|\{eos\})")


class Segment(NamedTuple):
    """A piece of the rendered text; ``learned`` pieces carry labels."""

    text: str
    learned: bool


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """One template per role; ``{content}`` marks where the message goes.

    In an assistant turn everything from ``{content}`` onwards is learned, so the
    token that ends the turn is learned too. Nothing else ever is. ``{bos}`` and
    ``{eos}`` stand for the tokenizer's own tokens (nothing where it has none).

    ``system=None`` means that the format has no system turn: the text is merged into
    the first user turn by ``system_in_user``, never dropped.
    """

    name: str
    user: str
    assistant: str
    system: str | None = None
    system_in_user: str = "{system}\n\n{content}"
    start: str = "{bos}"
    """Written once, before the first turn."""

    def __post_init__(self) -> None:
        for role in ("user", "assistant", "system"):
            template = getattr(self, role)
            if template is not None and template.count(CONTENT) != 1:
                raise ValueError(f"prompt format {self.name!r}: {role} needs one {CONTENT}")

    def render(
        self, messages: Iterable[Mapping[str, Any]], *, bos: str = "", eos: str = ""
    ) -> list[Segment]:
        """The conversation as segments; joined they are the text.

        Raises BadInput for a role that the format has no template for.
        """
        segments = [Segment(_special(self.start, bos, eos), False)]
        for role, content in self._turns(messages):
            before, after = (_special(part, bos, eos) for part in self._template(role))
            segments.append(Segment(before, False))
            segments.append(Segment(content + after, role == "assistant"))
        return [segment for segment in segments if segment.text]

    def generation_prompt(self) -> str:
        """What stands between the last user turn and the answer."""
        return self.assistant.split(CONTENT)[0]

    def jinja(self) -> str:
        """This format as a chat template, so that what is trained is what is served.

        Renders the same text as ``render`` for every conversation that both accept.
        """
        content = "message['content']"
        user = content
        system = f"{{{{- {_literal(self.system or CONTENT, content)} -}}}}"
        if self.system is None:
            keep = f"ns.system + '\\n\\n' + {content} if ns.system else {content}"
            system = f"{{%- set ns.system = {keep} -%}}"
            merged = _literal(self.system_in_user, content, "ns.system")
            user = f"({merged} if ns.system else {content})"
        return (
            "{%- set ns = namespace(system='') -%}"
            f"{{{{- {_literal(self.start)} -}}}}"
            "{%- for message in messages -%}"
            f"{{%- if message['role'] == 'system' -%}}{system}"
            "{%- elif message['role'] == 'user' -%}"
            f"{{{{- {_literal(self.user, user)} -}}}}{{%- set ns.system = '' -%}}"
            "{%- elif message['role'] == 'assistant' -%}"
            f"{{{{- {_literal(self.assistant, content)} -}}}}"
            "{%- else -%}{{- raise_exception('no template for this role: ' + message['role']) -}}"
            "{%- endif -%}{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{- {_literal(self.generation_prompt())} -}}}}"
            "{%- endif -%}"
        )

    def _template(self, role: str) -> tuple[str, str]:
        template = getattr(self, role, None) if role in ("user", "assistant", "system") else None
        if template is None:
            raise BadInput(
                f"prompt format {self.name!r} has no template for the role {role!r}",
                "use the roles system, user and assistant, or a model with its own chat template",
            )
        before, after = template.split(CONTENT)
        return before, after

    def _turns(self, messages: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
        system: str | None = None
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system" and self.system is None:
                system = content if system is None else f"{system}\n\n{content}"
            elif role == "user" and system is not None:
                parts = {CONTENT: content, "{system}": system}
                yield (
                    role,
                    "".join(str(parts.get(p, p)) for p in _PLACES.split(self.system_in_user)),
                )
                system = None
            else:
                yield role, content
        if system is not None:
            raise BadInput(
                "a system message stands after the last user turn",
                "put it before the user turn that it belongs to",
            )


PLAIN_PROMPT = PromptFormat(
    name="plain",
    system="{content}\n\n",
    user="### Instruction:\n{content}\n\n",
    assistant="### Response:\n{content}{eos}\n\n",
)
"""Plain-text markers, for base models: their chat tokens, where they have any, are untrained."""


def _literal(template: str, content: str = "''", system: str = "''") -> str:
    """``template`` as a Jinja expression that evaluates to its text."""
    values = {
        CONTENT: content,
        "{system}": system,
        "{bos}": "(bos_token or '')",
        "{eos}": "(eos_token or '')",
    }
    terms = [values.get(part) or json.dumps(part) for part in _PLACES.split(template) if part]
    return "(" + " + ".join(terms or ["''"]) + ")"


def _special(text: str, bos: str, eos: str) -> str:
    return text.replace("{bos}", bos).replace("{eos}", eos)
