"""Name the prompt format of a tokenizer, and tell how its chat template behaves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.conform import Message
from qlora_core.data.shape import Render, chat, shape_of
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput
from qlora_core.facts.prompt import PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import Registry

USER, ANSWER = chat(2)
SYSTEM = chat(1, system=True)[0]
_PARAMETERS = {
    "type": "object",
    "properties": {"x": {"type": "string", "description": "d"}},
    "required": ["x"],
}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": _PARAMETERS},
}
"""For templates that are made for tools alone."""


def identify_prompt_format(tokenizer: Any, *, registry: Registry | None = None) -> str:
    """The name of the format that the tokenizer's chat template renders.

    It is compared by what it renders with every format that an installed plugin provides;
    a template like none of them is ``custom:`` and the start of its SHA-256, and a tokenizer
    without one has ``none``.
    """
    if not tokenizer.chat_template:
        return "none"
    found = format_like(tokenizer, registry=registry)
    source = source_of(tokenizer, None, None)
    return found.name if found else f"custom:{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def format_like(tokenizer: Any, *, registry: Registry | None = None) -> PromptFormat | None:
    """The installed format whose turns look most like those of the tokenizer's chat template.

    Equal turns come first, then turns that differ in white space, then in what ends them; of
    several the one whose frame is nearest. What a template puts first by itself, a system
    text or a date, is no difference.
    """
    codec = codec_of(tokenizer, TokenizerPolicy())
    template = codec.template(source_of(tokenizer, None, None), {})
    bos, eos = codec.bos or "", codec.eos or ""
    shape = shape_of(renderer(template), bos, eos)
    shape = shape or shape_of(renderer(template, tools=[_TOOL]), bos, eos)
    best, found = (0, 0.0), None
    for prompt_format in _known(registry or installed()) if shape else ():
        known = shape_of(renderer(prompt_format, bos, eos), bos, eos)
        likeness = shape.likeness(known) if shape and known else best
        if likeness > best:
            best, found = likeness, prompt_format
    return found


def renderer(
    form: ChatTemplate | PromptFormat,
    bos: str = "",
    eos: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Render:
    """How a chat template or a prompt format renders; None where it refuses."""

    def render(messages: Sequence[Message]) -> str | None:
        if isinstance(form, ChatTemplate):
            return form.try_render(messages, tools)
        with suppress(BadInput):
            return "".join(s.text for s in form.render(messages, bos=bos, eos=eos))
        return None

    return render


def template_report(tokenizer: Any, policy: TokenizerPolicy | None = None) -> dict[str, Any]:
    """How the tokenizer's chat template behaves, found by rendering plain words with it.

    ``system`` is ``own turn`` or ``merged into the user turn``; ``turn_end`` the token that
    the template writes after an answer (None where it writes none, so that ``appended`` is);
    ``generation_prompt`` what it writes before an answer, and ``trained_prompt`` what stands
    there in training where that is something else.
    """
    codec = codec_of(tokenizer, policy or TokenizerPolicy())
    template = codec.template(source_of(tokenizer, None, None), {})
    ends = codec.ends(template)
    prompt, trained = _prompts(template)
    return {
        "format": identify_prompt_format(tokenizer),
        "system": "own turn" if _keeps_system(template) else "merged into the user turn",
        "turn_end": ends.found,
        "appended": None if ends.found else codec.end(template) or None,
        "generation_prompt": prompt,
        "trained_prompt": trained,
        "prompt_differs": prompt != trained,
        "uses_clock": template.uses_clock,
    }


def _known(registry: Registry) -> Iterable[PromptFormat]:
    yield from registry.prompt_formats.values()
    for architecture in registry.architectures.values():
        yield architecture.prompt


def _prompts(template: ChatTemplate) -> tuple[str | None, str | None]:
    """What is written between question and answer: when generating, and when training."""
    question = str(USER["content"])
    try:
        served = template.render([USER], generate=True)
        trained = template.render([USER, ANSWER])
    except BadInput:
        return None, None
    between = trained.partition(question)[2].partition(str(ANSWER["content"]))[0]
    return served.partition(question)[2], between


def _keeps_system(template: ChatTemplate) -> bool:
    try:
        return str(SYSTEM["content"]) in template.render([SYSTEM, USER, ANSWER])
    except BadInput:
        return False
