"""Is what a saved folder renders what was trained? Golden conversations, recorded and repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.encode import encode_conversation
from qlora_core.data.formats import format_like, identify_prompt_format
from qlora_core.data.notes import END_APPENDED
from qlora_core.data.tokenizer import stop_token_ids
from qlora_core.errors import BadInput
from qlora_core.facts.tokenizer import TokenizerPolicy
from qlora_core.registry.files import read_json
from qlora_core.registry.manager import Registry

FILE = "prompt_format.json"
"""Lies beside the tokenizer: what the golden conversations were in training."""
ASKED = {"role": "user", "content": "What is 2 + 2?"}
ANSWERED = {"role": "assistant", "content": "It is 4."}
GOLDEN: tuple[tuple[dict[str, str], ...], ...] = (
    (ASKED, ANSWERED),
    ({"role": "system", "content": "Be brief."}, ASKED, ANSWERED),
    (ASKED, ANSWERED, {"role": "user", "content": "And 東京?\n\n  é"},
     {"role": "assistant", "content": "def f(x):\n    return x"}),
)  # fmt: skip


@dataclass
class Verification:
    """What was compared, the first thing that differs, and what may surprise a server."""

    checks: list[str] = field(default_factory=list)
    difference: str | None = None
    warnings: list[str] = field(default_factory=list)

    def same(self, what: str, trained: Any, served: Any) -> bool:
        """Compare; only the first difference is kept."""
        if trained == served:
            self.checks.append(what)
        elif self.difference is None:
            self.difference = f"{what}: {_first_difference(trained, served)}"
        return bool(trained == served)


def record_prompts(tokenizer: Any, folder: Path, policy: TokenizerPolicy | None = None) -> None:
    """Write what the golden conversations are in training to `FILE` in ``folder``."""
    policy = policy or TokenizerPolicy()
    record = {
        "schema": 1,
        "format": identify_prompt_format(tokenizer),
        "bos": policy.bos,
        "turn_end": policy.turn_end,
        "family_stop": policy.stop,
        "stop": tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, policy)),
        "golden": [g for g in (_golden(tokenizer, list(c), policy) for c in GOLDEN) if g],
    }
    text = json.dumps(record, ensure_ascii=False, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def verify(folder: str | Path) -> Verification:
    """Render and tokenize the golden conversations with what lies in ``folder``, as servers do.

    ``folder`` is a run, its ``adapter``, or a merged model. Compared are: the trained text and
    ids, the prompt that a server sends before the answer, and the tokens that stop generation.
    Raises BadInput for a folder that holds no record of its prompts.
    """
    folder, record = _recorded(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    policy = TokenizerPolicy(
        bos=record["bos"], turn_end=record["turn_end"], stop=tuple(record["family_stop"])
    )
    result = Verification()
    for number, golden in enumerate(record["golden"], 1):
        now = _golden(tokenizer, golden["messages"], policy) or {}
        for key, what in (("text", "text"), ("input_ids", "ids"), ("labels", "labels")):
            result.same(f"golden conversation {number}, {what}", golden[key], now.get(key))
        _compare_served(result, number, golden, now, tokenizer)
    _compare_stops(result, folder, tokenizer, record)
    return result


def modelfile(folder: str | Path, *, registry: Registry | None = None) -> str:
    """A Modelfile with the chat template (in Go's language) and the stops of ``folder``.

    Raises BadInput for a chat template that no installed prompt format equals.
    """
    folder, record = _recorded(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    form = format_like(tokenizer, registry=registry)
    if form is None:
        raise BadInput(
            f"the chat template of {folder} is like no installed prompt format, and a Modelfile "
            "cannot hold Jinja",
            "serve a GGUF file (it holds the chat template), or provide the format by "
            "qlora_prompt_formats()",
        )
    eos = tokenizer.eos_token or ""
    turns = {
        role: template.replace("{bos}", "").replace("{eos}", eos)
        for role in ("system", "user", "assistant")
        if (template := getattr(form, role)) is not None
    }
    cases = "".join(
        f'{{{{ {"else " if n else ""}if eq .Role "{role}" }}}}'
        + text.replace("{content}", "{{ .Content }}")
        for n, (role, text) in enumerate(turns.items())
    )
    # the server adds the BOS token by itself
    start = form.start.replace("{bos}", "").replace("{eos}", eos)
    prompt = form.generation_prompt().replace("{eos}", eos)
    stops = "\n".join(f"PARAMETER stop {json.dumps(s, ensure_ascii=False)}" for s in record["stop"])
    body = f"{start}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{prompt}"
    return f'FROM ./model.gguf\nTEMPLATE """{body}"""\n{stops}\n'


def _golden(
    tokenizer: Any, messages: list[dict[str, str]], policy: TokenizerPolicy
) -> dict[str, Any] | None:
    template = codec_of(tokenizer, policy).template(source_of(tokenizer, None, None), {})
    try:
        encoded = encode_conversation(tokenizer, messages, policy=policy)
        prompt = template.render(messages[:-1], generate=True)
    except BadInput:
        return None
    return {
        "messages": messages,
        "text": encoded.text,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "prompt": prompt,
        "appended": END_APPENDED in encoded.notes,
        "clock": template.uses_clock,
    }


def _compare_served(
    result: Verification, number: int, golden: Mapping[str, Any], now: Any, tokenizer: Any
) -> None:
    """What a server makes of the question, against what stands before the answer in training."""
    result.same(f"golden conversation {number}, prompt", golden["prompt"], now.get("prompt"))
    prompt = golden["prompt"]
    if not golden["clock"]:
        prompt = tokenizer.apply_chat_template(
            golden["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        result.same(f"golden conversation {number}, served prompt", golden["prompt"], prompt)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if ids != golden["input_ids"][: len(ids)]:
        result.warnings.append(
            f"golden conversation {number}: the prompt that is served is no beginning of what was "
            f"trained ({_first_difference(golden['text'], prompt)})"
        )
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] == [bos] and tokenizer(prompt).input_ids[:2] == [bos, bos]:
        twice = "a client that tokenizes rendered text with special tokens doubles the BOS token"
        if twice not in result.warnings:
            result.warnings.append(twice)


def _compare_stops(
    result: Verification, folder: Path, tokenizer: Any, record: Mapping[str, Any]
) -> None:
    path = folder / "generation_config.json"
    stated = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = stated if isinstance(stated, list) else [stated]
    stops = tokenizer.convert_tokens_to_ids(record["stop"])
    result.same("stop tokens in generation_config.json", stops, [i for i in stops if i in ids])


def _recorded(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(folder)
    path = path / "adapter" if (path / "adapter").is_dir() else path
    if not (path / FILE).is_file():
        raise BadInput(
            f"{path} has no {FILE}: nothing says what was trained",
            "give the folder of a finished run, its adapter, or a model merged from it",
        )
    return path, read_json(path / FILE)


def _first_difference(trained: Any, served: Any) -> str:
    if not isinstance(trained, str | list) or not isinstance(served, str | list):
        return f"trained {trained!r}, now {served!r}"
    pairs = enumerate(zip(trained, served, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(trained), len(served)))
    start = max(0, at - 10)
    return f"at {at}: trained {trained[start : at + 20]!r}, now {served[start : at + 20]!r}"
