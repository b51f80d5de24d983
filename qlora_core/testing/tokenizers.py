"""Small tokenizers of every kind that models use, made in milliseconds and without files."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? It is Paris!",
    "def add(a, b):\n    return a + b\n\n\nAnswer:  the answer is 42, isn't it?   yes.",
    string.printable,
    "user assistant system [INST] ### Instruction Response: Ünïcödé éöü straße 東京 は 日本",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")
MARKUP = ("<think>", "</think>", "[INST]", "[/INST]", "<tool_call>", "</tool_call>")
"""Added tokens that are not flagged special, as reasoning and tool markup often are."""


def byte_level(special: Iterable[str] = SPECIAL, markup: Iterable[str] = MARKUP) -> Tokenizer:
    """Byte-level BPE, as GPT-2 has it."""
    return _with_added(Tokenizer.from_str(_byte_level()), special, markup)


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return str(_trained(tokenizer, trainer, (), ()).to_str())


def metaspace(special: Iterable[str] = SPECIAL, markup: Iterable[str] = MARKUP) -> Tokenizer:
    """BPE over SentencePiece's marked spaces with bytes for unknown characters."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False
    )
    trained = _trained(tokenizer, trainer, special, markup)
    return _without_added(trained, bytes_)


def unigram(special: Iterable[str] = SPECIAL, markup: Iterable[str] = MARKUP) -> Tokenizer:
    """Unigram with control tokens in its vocabulary, as SentencePiece writes them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=list(special),
        unk_token="<unk>",  # noqa: S106
        show_progress=False,
    )
    return _trained(tokenizer, trainer, special, markup)


def _trained(
    tokenizer: Tokenizer, trainer: trainers.Trainer, special: Iterable[str], markup: Iterable[str]
) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_added(tokenizer, special, markup)


def _with_added(tokenizer: Tokenizer, special: Iterable[str], markup: Iterable[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in markup])
    return tokenizer


def _without_added(tokenizer: Tokenizer, tokens: Iterable[str]) -> Tokenizer:
    """Entries of the vocabulary that no text spells: bytes are no added tokens."""
    source = json.loads(tokenizer.to_str())
    gone = set(tokens)
    source["added_tokens"] = [t for t in source["added_tokens"] if t["content"] not in gone]
    return Tokenizer.from_str(json.dumps(source))


KINDS: dict[str, Callable[..., Tokenizer]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "unigram": unigram,
}


def toy_tokenizer(
    kind: str = "byte-level",
    chat_template: str | None = None,
    *,
    special: Iterable[str] = SPECIAL,
    markup: Iterable[str] = MARKUP,
    **names: str | None,
) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS` as transformers has them.

    ``names`` are the tokens with a role, ``bos_token="<s>"``; all of them are special.
    """
    roles = {role: token for role, token in names.items() if token is not None}
    backend = KINDS[kind](dict.fromkeys([*special, *roles.values()]), markup)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.chat_template = chat_template
    return tokenizer
