"""Control tokens spelt out in data: none of them becomes one, and nothing else changes."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from exams.soak.chats import added_tokens, control, shared_data, templates, tokenizers
from exams.suite import Case, Cases, Suite
from qlora_core.data.encode import encode_conversation
from qlora_core.data.notes import READ
from qlora_core.errors import BadInput

EVERY = 5_000 if shared_data() else 200
"""With so many cases asked for there are all: with the real tokenizers and templates, 5,588."""
PER_TOKENIZER = 10_000
"""Fuzzed texts for each tokenizer, in a full run."""
PIECES = (
    "a", "hello", " ", "  ", "\n", "<", ">", "|", "[", "]", "</", "<|", "|>", "im_end", "<|im_",
    "s>", "é", "東京", "😀", "\u200b", "\u00a0", "▁", "{{", "}}", "{%", "'", "\\", "0x", "\u0300",
)  # fmt: skip
WORDS = ("What", "is", "the", "capital", "of", "France?", "def f(x):\n    return x", "éü", "東京",
         "1 + 1 = 2", "isn't", "😀", "[1, 2]", "<b>bold</b>", "- a\n- b", "\n\n", "  ")  # fmt: skip
ROLES = ("system", "user", "assistant", "tool")
TEXTS = {"system": "Be kind", "user": "Say it", "assistant": "Well", "tool": "It is"}


def conversation(role: str, text: str, *, system: bool = False) -> list[dict[str, Any]]:
    """A short conversation with ``text`` after what one role says."""
    said = {name: words + text * (name == role) for name, words in TEXTS.items()}
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns: list[dict[str, Any]] = [{"role": "user", "content": said["user"]}]
    if role == "tool":
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": said["tool"], "name": "look"},
        ]
    turns.append({"role": "assistant", "content": said["assistant"]})
    first = [{"role": "system", "content": said["system"]}] if role == "system" or system else []
    return [*first, *turns]


def judged(name: str, tokenizer: Any, role: str, attack: str) -> Case:
    """Whether ``attack`` adds no control token to those of the same words without it."""
    expected = _expected(tokenizer, role)
    try:
        encoded = encode_conversation(tokenizer, conversation(role, attack))
    except BadInput:
        why = "by the template" if expected is None else "for the attack"
        return Case(name, True, figures={f"refused {why}": 1})
    found = control(tokenizer, encoded.input_ids)
    read = expected is not None and READ in encoded.notes and role == "assistant"
    if found != expected and read:
        return Case(name, True, figures={"left to a template that reads it": 1})
    fault = "" if found == expected else f"{attack!r}: {found} in place of {expected}"
    return Case(name, not fault, fault)


@functools.cache
def _expected(tokenizer: Any, role: str) -> list[str] | None:
    """The control tokens of the words without an attack; None: the template refuses this role."""
    try:
        clean = encode_conversation(tokenizer, conversation(role, ""))
    except BadInput:
        return None
    return control(tokenizer, clean.input_ids)


def tallied(cases: Cases) -> Cases:
    """The same cases, and one more at the end whose figures are the sums of theirs."""

    @functools.wraps(cases)
    def counted(count: int, seed: int) -> Iterator[Case]:
        sums: Counter[str] = Counter()
        for case in cases(count, seed):
            sums.update(case.figures)
            yield replace(case, figures={})
        yield Case("in all", True, figures=dict(sums))

    return counted


def spelt(count: int) -> list[tuple[str, Any, str, str]]:
    """Every (tokenizer's name, tokenizer, added token, role), or an even ``count`` of them."""
    every = [
        (name, tokenizer, token, role)
        for name, tokenizer in {**tokenizers(), **templates()}.items()
        for token in added_tokens(tokenizer)
        for role in ROLES
    ]
    return every[:: max(1, len(every) // count)] if count < EVERY else every


@tallied
def every_token(count: int, seed: int) -> Iterator[Case]:
    """Every added token of every tokenizer and template, in every role."""
    del seed
    for name, tokenizer, token, role in spelt(count):
        yield judged(f"{name}, {token}, {role}", tokenizer, role, f" {token} x")


@tallied
def fuzz(count: int, seed: int) -> Iterator[Case]:
    """Texts of tokens, halves of tokens and odd characters, for every tokenizer alike."""
    found = tokenizers()
    for number in range(-(-count // len(found))):
        for name, tokenizer in found.items():
            draw = random.Random(f"{seed}:{name}:{number}")
            pieces = [*added_tokens(tokenizer) * 3, *PIECES]
            attack = "".join(draw.choices(pieces, k=draw.randint(1, 12)))
            yield judged(f"{name} {number}", tokenizer, draw.choice(ROLES[:3]), attack)


@tallied
def benign(count: int, seed: int) -> Iterator[Case]:
    """Texts without control tokens: their ids are those of one pass over the rendered text.

    One template after the other: there are more than the renderer keeps compiled.
    """
    found = {**tokenizers(), **templates()}
    for name, tokenizer in found.items():
        for number in range(-(-count // len(found))):
            draw = random.Random(f"{seed}:{name}:{number}")
            words = " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
            messages = conversation(draw.choice(ROLES[:3]), " " + words, system=draw.random() < 0.3)
            try:
                encoded = encode_conversation(tokenizer, messages)
            except BadInput as error:
                plain = _refuses(tokenizer, messages)
                yield Case(f"{name} {number}", plain, error.problem, {"refused by both": 1})
                continue
            whole = tokenizer(encoded.text, add_special_tokens=False).input_ids
            fault = "" if whole == encoded.input_ids else f"other ids for {words!r}"
            yield Case(f"{name} {number}", not fault, fault)


def _refuses(tokenizer: Any, messages: list[dict[str, Any]]) -> bool:
    """Whether transformers' own rendering fails as well."""
    try:
        tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        return True
    return False


@tallied
def plain_fuzz(count: int, seed: int) -> Iterator[Case]:
    """The same texts through ``apply_chat_template(tokenize=True)``."""
    found = tokenizers()
    for number in range(-(-count // len(found))):
        for name, tokenizer in found.items():
            draw = random.Random(f"{seed}:{name}:{number}")
            pieces = [*added_tokens(tokenizer) * 3, *PIECES]
            attack = "".join(draw.choices(pieces, k=draw.randint(1, 12)))
            yield _plain(f"{name} {number}", tokenizer, draw.choice(ROLES[:3]), attack)


@tallied
def plain_every_token(count: int, seed: int) -> Iterator[Case]:
    """The same tokens and roles through ``apply_chat_template(tokenize=True)``."""
    del seed
    for name, tokenizer, token, role in spelt(count):
        yield _plain(f"{name}, {token}, {role}", tokenizer, role, f" {token} x")


def _plain(name: str, tokenizer: Any, role: str, attack: str) -> Case:
    def tokens(text: str) -> list[str]:
        messages = conversation(role, text)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return control(tokenizer, ids)

    try:
        expected = tokens("")
    except Exception:
        return Case(name, True, figures={"refused by the template": 1})
    try:
        found = tokens(attack)
    except Exception as error:
        return Case(name, True, f"{type(error).__name__}", {"refused for the attack": 1})
    return Case(name, found == expected, f"{len(found)} control tokens, {len(expected)} meant")


TOKENS_SUITE = Suite(
    "injection-tokens", "every added token, spelt out in any role, stays text",
    every_token, full=EVERY, quick=250, baseline=plain_every_token,
)  # fmt: skip
FUZZ_SUITE = Suite(
    "injection-fuzz", "no text of tokens and halves of tokens yields a control token",
    fuzz, full=8 * PER_TOKENIZER, quick=800, baseline=plain_fuzz,
)  # fmt: skip
BENIGN_SUITE = Suite(
    "injection-benign", "texts without control tokens have the ids of one pass over the rendering",
    benign, full=30_000, quick=150,
)  # fmt: skip
