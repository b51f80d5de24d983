"""Name the prompt format of a tokenizer, and tell how its chat template behaves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.conform import Message
from qlora_core.data.template import ChatTemplate
from qlora_core.errors import BadInput
from qlora_core.facts.prompt import PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import Registry

USER = {"role": "user", "content": "Name it one"}
ANSWER = {"role": "assistant", "content": "Name it two"}
SYSTEM = {"role": "system", "content": "Name it zero"}
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (USER, ANSWER),
    (USER, ANSWER, {"role": "user", "content": "Name it three"},
     {"role": "assistant", "content": "Name it four"}),
    (SYSTEM, USER, ANSWER),
)  # fmt: skip
PLAIN_TURNS = 2
"""So many of the conversations must be alike; the others tell near relatives apart."""


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
    """The installed format that renders turns as the tokenizer's chat template does."""
    codec = codec_of(tokenizer, TokenizerPolicy())
    template = codec.template(source_of(tokenizer, None, None), {})
    best, found = 0, None
    for prompt_format in _known(registry or installed()):
        score = _likeness(template, prompt_format, codec.bos or "", codec.eos or "")
        if score > best:
            best, found = score, prompt_format
    return found


def _likeness(template: ChatTemplate, prompt_format: PromptFormat, bos: str, eos: str) -> int:
    """0 where a template renders turns otherwise; more, the more of the frame is alike too.

    A system text that the template puts first by itself is no difference.
    """
    score = 0
    turns_only = replace(prompt_format, start="")
    for number, messages in enumerate(CONVERSATIONS):
        try:
            text = _bare(template.render(messages), bos, eos)
        except BadInput:
            text = ""
        text = text.removesuffix(prompt_format.generation_prompt().strip()).strip()
        whole, turns = (
            _bare("".join(s.text for s in form.render(messages, bos=bos, eos=eos)), bos, eos)
            for form in (prompt_format, turns_only)
        )
        if number < PLAIN_TURNS and not text.endswith(turns):
            return 0
        score += 1 + 2 * (text == whole)
    return score


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


def _bare(text: str, bos: str, eos: str) -> str:
    """Text without what may stand around turns: BOS, an EOS that closes, empty thoughts."""
    text = re.sub(r"<think>\s*</think>\s*", "", text).strip()
    text = text.removeprefix(bos).strip()
    return text.removesuffix(eos).strip() if eos else text


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
