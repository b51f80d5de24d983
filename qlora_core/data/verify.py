"""Is what a saved folder renders what was trained? Golden conversations, recorded and repeated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_core.data.bounded import TemplateExhausted, TemplateRefused
from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.conform import Message
from qlora_core.data.encode import encode_conversation
from qlora_core.data.formats import identify_prompt_format, renderer
from qlora_core.data.modelfile import REMEDY, serve_modelfile, write_modelfile
from qlora_core.data.serve import REMEDIES, ROADS, Served, adds_bos, ids_of, with_own_bos
from qlora_core.data.system import render_prompt, render_whole
from qlora_core.data.template import clock
from qlora_core.data.tokenizer import read_tokenizer, stop_token_ids
from qlora_core.errors import BadInput
from qlora_core.facts.tokenizer import TokenizerPolicy
from qlora_core.registry.files import read_json

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
_NAMES = {"input_ids": "ids"}
_OF_RECORD = {"bos", "turn_end", "family_stop", "stop", "golden"}
_OF_GOLDEN = {"messages", "text", "input_ids", "labels", "prompt", "clock"}
_FOLDERS = "give the folder of a finished run, its adapter, or a model merged from it"


@dataclass
class Verification:
    """What was compared, the first thing that differs, and what may surprise a server."""

    checks: list[str] = field(default_factory=list)
    difference: str | None = None
    warnings: list[str] = field(default_factory=list)

    def warn(self, what: str, remedy: str, example: str = "") -> None:
        """Add a warning, once, with the first example of it."""
        if not any(warning.startswith(what) for warning in self.warnings):
            self.warnings.append(f"{what}{example and f' ({example})'}\n  -> {remedy}")

    def summary(self) -> str:
        """What was compared, each kind once with its count."""
        kinds = Counter(check.partition(", ")[2] or check for check in self.checks)
        return ", ".join(f"{kind} ({count})" for kind, count in kinds.items())

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
    golden = []
    for conversation in GOLDEN:
        with suppress(BadInput):  # a template may take no system text, or only with one
            golden.append(_golden(tokenizer, list(conversation), policy))
    record = {
        "schema": 1,
        "format": identify_prompt_format(tokenizer),
        "bos": policy.bos,
        "turn_end": policy.turn_end,
        "family_stop": policy.stop,
        "stop": tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, policy)),
        "golden": golden,
    }
    text = json.dumps(record, ensure_ascii=False, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def verify(folder: str | Path) -> Verification:
    """Render and tokenize the golden conversations with what lies in ``folder``, as servers do.

    ``folder`` is a run, its ``adapter``, or a merged model. Compared are: the trained text and
    ids, the prompt that each server sends before the answer, and the tokens that stop
    generation. Raises BadInput for a folder that holds no record of its prompts.
    """
    folder, record = _recorded(folder)
    tokenizer = read_tokenizer(folder)
    policy = _policy(record)
    result = Verification()
    for number, golden in enumerate(record["golden"], 1):
        where = f"golden conversation {number}"
        try:
            now = _golden(tokenizer, golden["messages"], policy)
        except BadInput as error:
            result.difference = result.difference or f"{where}: {error.problem}"
            continue
        for key in ("text", "input_ids", "labels", "prompt"):
            result.same(f"{where}, {_NAMES.get(key, key)}", golden[key], now[key])
        if result.difference is None:
            _compare_served(result, number, golden, tokenizer)
    _compare_stops(result, folder, tokenizer, record)
    if result.difference is None:
        _compare_modelfile(result, folder, tokenizer, record)
    return result


def modelfile(folder: str | Path) -> str:
    """A Modelfile with the chat template (in Go's language) and the stops of ``folder``.

    It was run on the golden conversations, and gave the prompts that were trained. Raises
    BadInput, with the reason, for a chat template that no Modelfile can hold.
    """
    folder, record = _recorded(folder)
    tokenizer = read_tokenizer(folder)
    text = _modelfile(tokenizer, record)
    for number, golden in enumerate(record["golden"], 1):
        served, stops = serve_modelfile(text, _asked(golden))
        served = with_own_bos(tokenizer, served).text
        trained = with_own_bos(tokenizer, golden["prompt"]).text
        if served != trained or stops != record["stop"]:
            raise BadInput(
                f"no Modelfile says what the chat template does: golden conversation {number}, "
                f"prompt {_first_difference(trained, served)}",
                REMEDY,
            )
    return text


def _modelfile(tokenizer: Any, record: Mapping[str, Any]) -> str:
    template = codec_of(tokenizer, _policy(record)).template(source_of(tokenizer, None, None), {})

    def prompt(messages: Sequence[Message]) -> str | None:
        try:
            return render_prompt(template, messages)
        except TemplateExhausted:
            raise
        except BadInput:
            return None

    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""
    return write_modelfile(renderer(template), prompt, bos=bos, stops=record["stop"])


def _policy(record: Mapping[str, Any]) -> TokenizerPolicy:
    return TokenizerPolicy(
        bos=record["bos"], turn_end=record["turn_end"], stop=tuple(record["family_stop"])
    )


def _golden(
    tokenizer: Any, messages: list[dict[str, str]], policy: TokenizerPolicy
) -> dict[str, Any]:
    source = source_of(tokenizer, None, None)
    template = codec_of(tokenizer, policy).template(source, {})
    encoded = encode_conversation(tokenizer, messages, policy=policy)
    asked = render_whole(template, messages, None)[1][:-1]
    prompt = template.render(asked, generate=True)
    return {
        "messages": messages,
        "asked": asked,
        "text": encoded.text,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "prompt": prompt,
        "clock": template.uses_clock,
    }


def _asked(golden: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a client must send: the system text where the template has a place for it."""
    return list(golden.get("asked") or golden["messages"][:-1])


def _compare_served(
    result: Verification, number: int, golden: Mapping[str, Any], tokenizer: Any
) -> None:
    """What servers make of the question, against what stands before the answer in training."""
    where = f"golden conversation {number}"
    prompt = Served(golden["prompt"], ids_of(tokenizer, golden["prompt"]))
    for name, road in ROADS.items():
        try:
            served = road(tokenizer, _asked(golden))
        except TemplateRefused as refused:
            result.warn(f"{name} refuses plain messages: {refused}", REMEDIES[name])
            continue
        if served == prompt:
            result.checks.append(f"{where}, prompt as {name} sends it")
        else:
            difference = _first_difference(prompt.text, served.text)
            result.warn(f"{name} sends another prompt", REMEDIES[name], difference)
    if not golden["text"].startswith(prompt.text):
        result.warn(
            "the prompt that is served is no beginning of what was trained",
            "train with the template's own switches, or with reasoning in the answers",
            _first_difference(golden["text"], prompt.text),
        )
    elif prompt.ids != golden["input_ids"][: len(prompt.ids)]:
        result.warn(
            "the tokens at the end of the prompt are other ones than in training, where the "
            "first letters of the answer join them",
            "give a prompt format whose answers begin after a control token or a line break",
            _first_difference(golden["input_ids"], prompt.ids),
        )
    if _asked(golden) != golden["messages"][:-1]:
        result.warn(
            "the chat template has no place for system texts: in training they stood before the "
            "user's, and servers leave them out or refuse them",
            "send system texts at the start of the first user message",
        )
    if golden["clock"]:
        result.warn(
            f"the chat template prints the date: in training it was {clock():%d %B %Y}, servers "
            "print today's",
            "give the date as the template's own argument, if it has one",
        )
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer(prompt.text).input_ids[:2] == [bos, bos]:
        result.warn(
            "a client that tokenizes the rendered text with special tokens doubles the BOS token",
            "send messages, or tokenize with add_special_tokens=False",
        )


def _compare_modelfile(
    result: Verification, folder: Path, tokenizer: Any, record: Mapping[str, Any]
) -> None:
    try:
        text = modelfile(folder)
    except TemplateExhausted:
        raise
    except BadInput as error:
        result.warn(f"Ollama: {error.problem}", error.remedy)
        return
    for number, golden in enumerate(record["golden"], 1):
        served = with_own_bos(tokenizer, serve_modelfile(text, _asked(golden))[0])
        prompt = golden["prompt"]
        if served.ids == ids_of(tokenizer, prompt):
            result.checks.append(f"golden conversation {number}, prompt as Ollama sends it")
        else:
            difference = _first_difference(prompt, served.text)
            result.warn("Ollama sends another prompt", REMEDIES["Ollama"], difference)


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
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise BadInput(f"{path} {what}", _FOLDERS)
    path = path / "adapter" if (path / "adapter").is_dir() else path
    if not (path / FILE).is_file():
        raise BadInput(f"{path} has no {FILE}: nothing says what was trained", _FOLDERS)
    record = read_json(path / FILE)
    golden = record.get("golden")
    whole = isinstance(golden, list) and all(
        isinstance(g, dict) and g.keys() >= _OF_GOLDEN for g in golden
    )
    if record.get("schema") != 1 or not record.keys() >= _OF_RECORD or not whole:
        raise BadInput(
            f"{path / FILE} is not what a run writes: something is missing in it",
            "take it from the run again; without it nothing says what was trained",
        )
    return path, record


def _first_difference(trained: Any, served: Any) -> str:
    if not isinstance(trained, str | list) or not isinstance(served, str | list):
        return f"trained {trained!r}, now {served!r}"
    pairs = enumerate(zip(trained, served, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(trained), len(served)))
    start = max(0, at - 10)
    return f"at {at}: trained {trained[start : at + 20]!r}, now {served[start : at + 20]!r}"
