"""From a conversation to token ids and labels, by one path that training and checks share.

Rendered once by the tokenizer's own chat template, tokenized once, and labelled by character
spans. Learned is what an assistant says and the token that ends its turn; nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_core.data.backend import Control, Span, Tokens
from qlora_core.data.codec import Codec, codec_of, source_of
from qlora_core.data.conform import Message, checked, text_of
from qlora_core.data.cut import IGNORED, labels_of, shorten
from qlora_core.data.inject import encode_untrusted
from qlora_core.data.notes import CLOCK_FROZEN, END_APPENDED, NEUTRALISED, NO_END, NO_FIT, TRUNCATED
from qlora_core.data.spans import Rendering
from qlora_core.data.system import render_whole
from qlora_core.data.template import ChatTemplate
from qlora_core.data.turn_ends import Learned, with_ends
from qlora_core.facts.prompt import PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy

__all__ = ["IGNORED", "Encoded", "encode_conversation", "encode_text"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample: text, ids and labels that cannot disagree.

    ``labels`` has the length of ``input_ids``: the id itself where it is learned, else -100.
    ``learned`` are the character spans of ``text`` that are learned. ``notes`` are the codes
    of what was done to the conversation. ``truncated`` counts the tokens cut from the start
    of the prompt (``text`` stays whole), ``answers_lost`` the earlier answers cut with them.
    ``fits`` is False when the last answer with one token before it is longer than
    ``max_length``: such a sample is left whole, and must be dropped.
    """

    text: str
    input_ids: list[int]
    labels: list[int]
    learned: list[Span]
    notes: tuple[str, ...] = ()
    truncated: int = 0
    answers_lost: int = 0
    fits: bool = True

    @property
    def learned_tokens(self) -> int:
        """How many tokens are predicted from those before: the first of all is never learned."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prompt_format: PromptFormat | None = None,
    policy: TokenizerPolicy | None = None,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    trusted_roles: Sequence[str] = (),
) -> Encoded:
    """One conversation as text, token ids and labels.

    ``messages`` are mappings with ``role`` and ``content``. The text is what the tokenizer's
    chat template renders (``prompt_format`` replaces the template), plus what must not be
    missing: a system text that the template leaves out is merged into the user turn that
    follows, and an end-of-turn token is appended where the template ends no turn.

    Control tokens that are spelt out in a message stay plain text, but for the roles in
    ``trusted_roles``. Raises BadInput where the template itself refuses the conversation, or
    where an answer cannot be found in the text for sure.
    """
    codec = codec_of(tokenizer, policy or TokenizerPolicy())
    template = codec.template(source_of(tokenizer, prompt_format, tools), template_kwargs or {})
    rendering, messages = render_whole(template, checked(messages), tools)
    closed = len(messages) - 1 in rendering.answers
    end = codec.end(template) if closed else ""
    # a template that is known to end no turn gets the token at once, and loses it if that is wrong
    open_ended = bool(end) and codec.ends(template).found is None
    for suffix in (end, "") if open_ended else ("", end):
        tokens, control, notes = encode_untrusted(
            codec.backend, template, messages, tools, rendering.text,
            suffix=suffix, trusted_roles=trusted_roles,
        )  # fmt: skip
        own = [(i, span) for i, span in control if span[0] < len(rendering.text)]
        learned = _learned(codec, template, rendering, own, "")
        ended = closed and learned[-1].ended
        if not end or ended != bool(suffix):
            break
    if suffix:
        learned = _learned(codec, template, rendering, control, suffix)
        notes.append(END_APPENDED)
    elif closed and not ended:
        notes.append(NO_END)
    if template.uses_clock:
        notes.append(CLOCK_FROZEN)
    spans = [answer.span for answer in learned]
    text = rendering.text + suffix
    head = _head(text, messages)
    return _sample(text, tokens, spans, [*rendering.notes, *notes], codec, max_length, head)


def _learned(
    codec: Codec, template: ChatTemplate, rendering: Rendering, control: Control, suffix: str
) -> list[Learned]:
    return with_ends(
        rendering.text + suffix,
        list(rendering.answers.values()),
        control,
        codec.backend,
        codec.ends(template),
        codec.eos,
        closed=max(rendering.answers, default=-1) == rendering.messages - 1,
    )


def encode_text(
    tokenizer: Any,
    text: str,
    *,
    policy: TokenizerPolicy | None = None,
    max_length: int | None = None,
) -> Encoded:
    """Raw text, learned whole, with the BOS token that the family wants and an EOS token.

    Control tokens that are spelt out in ``text`` stay plain text. A text that is longer than
    ``max_length`` does not fit: it is left whole, for the caller to split or to drop.
    """
    codec = codec_of(tokenizer, policy or TokenizerPolicy())
    start, end = codec.raw_bos, codec.eos or ""
    whole = start + text + end
    tokens = codec.backend.encode(whole)
    notes = []
    if codec.backend.spells_control(text):
        shift, stop = len(start), len(start) + len(text)
        names = codec.backend.names
        kept = [
            (i, s) for i, s in codec.backend.control_tokens(tokens, whole)
            if (s[1] <= shift or s[0] >= stop) and i in names
        ]  # fmt: skip
        tokens = codec.backend.encode_inert(whole, kept)
        notes.append(NEUTRALISED)
    sample = _sample(whole, tokens, [(len(start), len(whole))], notes, codec, None)
    fits = max_length is None or len(sample.input_ids) <= max_length
    return Encoded(**{**vars(sample), "fits": fits})


def _sample(
    text: str,
    tokens: Tokens,
    learned: list[Span],
    notes: list[str],
    codec: Codec,
    max_length: int | None,
    head: int = 0,
) -> Encoded:
    labels = labels_of(tokens, learned)
    ids = list(tokens.ids)
    lost, answers_lost, fits = 0, 0, True
    if max_length is not None and len(ids) > max_length:
        kept = shorten(labels, _heads(tokens, codec, head, max_length), max_length)
        if kept is None:
            fits = False
            notes.append(NO_FIT)
        else:
            lost, answers_lost = kept.start - kept.head, kept.answers_lost
            ids = ids[: kept.head] + ids[kept.start :]
            labels = labels[: kept.head] + labels[kept.start :]
            notes.append(TRUNCATED)
    return Encoded(
        text=text, input_ids=ids, labels=labels, learned=learned,
        notes=tuple(dict.fromkeys(notes)), truncated=lost, answers_lost=answers_lost, fits=fits,
    )  # fmt: skip


def _heads(tokens: Tokens, codec: Codec, head: int, max_length: int) -> list[int]:
    """How many first tokens to keep: up to character ``head`` if they are few, else the BOS."""
    first = sum(end <= head for _, end in tokens.offsets)
    bos = int(tokens.ids[0] == codec.bos_id)
    return [first, bos] if bos < first <= max_length // 4 else [bos]


def _head(text: str, messages: Sequence[Message]) -> int:
    """Where the first text that is no system text begins: before it stand the template's words."""
    first = next((text_of(m).strip() for m in messages if m["role"] != "system"), "")
    return max(text.find(first), 0) if first else 0
