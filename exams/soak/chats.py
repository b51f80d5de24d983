"""Tokenizers with chat templates, as many as are at hand, to try conversations on."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qlora_base

from qlora_core.testing.tokenizers import KINDS, toy_tokenizer

MARKUP = re.compile(
    r"<\|[^|<>\s{}']+\|>|<\uff5c[^<>\s]+\uff5c>|</?[a-z_]+_of_[a-z]+>|\[/?[A-Z_]{4,}\]|<turn\|>"
    r"|\[gMASK\]|<sop>|</?think>|</?tool_call>|<step>|</s>|<tool_call\|>|<tool_response\|>"
)
SOFT = {"<think>", "</think>", "<tool_call>", "</tool_call>", "[INST]", "[/INST]"}
"""Markup that tokenizers hold without the flag ``special``."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
ENDED = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def tokenizer_for(template: Any, **roles: str | None) -> Any:
    """A byte-level tokenizer with the template's own markup as added tokens."""
    source = template if isinstance(template, str) else json.dumps(template, ensure_ascii=False)
    found = dict.fromkeys([*filter(None, roles.values()), *MARKUP.findall(source)])
    return toy_tokenizer(
        "byte-level",
        template,
        special=[token for token in found if token not in SOFT],
        markup=[token for token in found if token in SOFT],
        **{f"{role}_token": token for role, token in roles.items()},
    )


def shared_data() -> Path | None:
    """The folder of real tokenizers and templates, where there is one."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    path = Path(os.environ.get("QLORA_TEST_DATA", beside))
    path = path / "data" if (path / "data").is_dir() else path
    return path if (path / "README.md").is_file() else None


@functools.cache
def tokenizers() -> dict[str, Any]:
    """By name: toy ones of every kind, the embedded base's, and real ones where they are."""
    from transformers import AutoTokenizer

    found = {kind: toy_tokenizer(kind, CHATML, **ROLES) for kind in sorted(KINDS)}
    found["embedded base"] = AutoTokenizer.from_pretrained(qlora_base.MODEL)
    data = shared_data()
    for folder in sorted((data / "tokenizers").iterdir()) if data else ():
        found[folder.name] = AutoTokenizer.from_pretrained(folder)
        found[folder.name].chat_template = ENDED
    return found


@functools.cache
def templates() -> dict[str, Any]:
    """By name: tokenizers with the real chat templates that are at hand."""
    return dict(_templates())


def _templates() -> Iterator[tuple[str, Any]]:
    data = shared_data()
    if data is None:
        return
    path = data / "prompts" / "expected" / "real_tokenizer_configs.json"
    for name, c in json.loads(path.read_text(encoding="utf-8"))["configs"].items():
        roles = {role: c[role] for role in ("bos", "eos", "pad", "unk")}
        yield name, tokenizer_for(c["chat_template"], **roles)
    for file in sorted((data / "prompts" / "jinja").glob("*/*.jinja")):
        source = file.read_text(encoding="utf-8")
        yield f"{file.parent.name}/{file.stem}", tokenizer_for(source, bos="<s>", eos="</s>")


@functools.cache
def added_tokens(tokenizer: Any) -> list[str]:
    """The control tokens that a text might spell: added ones that are more than words or space.

    Found once for each tokenizer, to which nothing may be added afterwards.
    """
    kinds = tokenizer.added_tokens_decoder
    return sorted(
        token
        for token, number in tokenizer.get_added_vocab().items()
        if token.strip() and (kinds[number].special or not _word(token))
    )


@functools.cache
def _control_names(tokenizer: Any) -> dict[int, str]:
    numbers, unknown = tokenizer.get_added_vocab(), tokenizer.unk_token
    return {numbers[token]: token for token in added_tokens(tokenizer) if token != unknown}


def control(tokenizer: Any, ids: list[int]) -> list[str]:
    """The control tokens among ids, in order. Unknown characters yield the unknown token, too."""
    names = _control_names(tokenizer)
    return [names[i] for i in ids if i in names]


def _word(token: str) -> bool:
    return all(c.isalnum() or c.isspace() for c in token.replace("▁", " "))
