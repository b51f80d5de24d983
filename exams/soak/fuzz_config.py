"""Damaged and invented configs: detection answers, or refuses clearly; it never breaks."""

from __future__ import annotations

import copy
import json
import random
import string
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from exams.soak.traps import settle, watch
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import BadInput, DetectionError
from qlora_core.registry.detect import detect, installed
from qlora_core.registry.detection import Detection
from qlora_core.registry.manager import Registry

BATCH = 1000
"""Inputs that make one case: its name tells which, so that one can be made again."""
SECONDS, BUILD_SECONDS = 0.3, 30.0
BUILT = 0.005
"""The share of the inputs that may also be read off the model's structure, built for it."""
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, -0.0, 1e-320, "", " ", "0",
    "\ud800", "\x00", "../..", "owner/repo", "llama", "[", "{{ x }}", "A" * 5000, [], {}, [[]],
    [None], {"": None}, {"model_type": []}, {"__float__": "NaN"}, float("inf"), float("nan"),
)  # fmt: skip
BYTES = (b"\x00", b"\xff", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"NaN", b"1e999",
         b"Infinity", b"\\ud800", b"null", b'"model_type"', b"-")  # fmt: skip


def without(registry: Registry, *, fallback: bool) -> Registry:
    """A registry without the fallback plugins, which build models, or with them alone."""
    hook = registry.manager.hook.qlora_infer_architecture
    builders = {implementation.plugin_name for implementation in hook.get_hookimpls()}
    names = {record.name for record in registry.records}
    return Registry.from_environment(block=builders if fallback else names - builders)


def seeds() -> list[dict[str, Any]]:
    """The example config of every family, as published ones would be written."""
    examples = [dict(a.example) for a in installed().architectures.values() if a.example]
    named = [{**e, "architectures": ["XForCausalLM"], "quantization_config": {}} for e in examples]
    nested = [{"model_type": "wrapped", "text_config": e, "auto_map": {}} for e in examples]
    return [*examples, *named, *nested]


def mutated(config: dict[str, Any], draw: random.Random) -> Any:
    """The config with one to four of its values, keys or kinds changed."""
    value = json.loads(json.dumps(config, default=str))
    for _ in range(draw.randint(1, 4)):
        places = list(_places(value))
        if not places:
            return draw.choice(STRANGE)
        holder, key = draw.choice(places)
        draw.choice((_replace, _replace, _remove, _wrap, _rename, _add))(holder, key, draw)
    return value


def scrambled(content: bytes, draw: random.Random) -> bytes:
    """The bytes of a file with some removed, repeated, put in or flipped."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            data[place:place] = draw.choice(BYTES)
        elif kind == 1:
            del data[place : place + draw.randint(1, 20)]
        elif kind == 2:
            data[place:place] = data[place : place + draw.randint(1, 40)]
        elif kind == 3 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        else:
            del data[place:]
    return bytes(data)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _replace(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = copy.deepcopy(draw.choice(STRANGE))


def _remove(holder: Any, key: Any, draw: random.Random) -> None:
    del draw
    del holder[key]


def _wrap(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = draw.choice(({"a": holder[key]}, [holder[key]], str(holder[key])))


def _rename(holder: Any, key: Any, draw: random.Random) -> None:
    if isinstance(holder, dict):
        holder["".join(draw.choices(string.printable, k=5))] = holder.pop(key)


def _add(holder: Any, key: Any, draw: random.Random) -> None:
    names = ("model_type", "architectures", "text_config", "quantization_config", "auto_map",
             "attn_implementation", "num_hidden_layers", "__float__", "_name_or_path")  # fmt: skip
    if isinstance(holder, dict):
        holder[draw.choice(names)] = copy.deepcopy(draw.choice((holder[key], *STRANGE)))


def cases(count: int, seed: int) -> Iterator[Case]:
    """Batches: values changed in memory; values changed and written; bytes changed."""
    registries = [without(installed(), fallback=kind) for kind in (True, False)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settle(lambda: detect({"model_type": "nobody-knows-it"}))
        for first in range(0, count, BATCH):
            yield from _batch(first, min(BATCH, count - first), seed, folder, registries)


def _batch(
    first: int, size: int, seed: int, folder: Path, registries: list[Registry]
) -> Iterator[Case]:
    examples = seeds()
    start = time.process_time()
    for number in range(first, first + size):
        draw = random.Random(f"{seed}:{number}")
        built = draw.random() < BUILT
        config = fuzzed(draw, examples, folder)
        found = watch(partial(detect, config, registry=registries[built]), patience=120)
        fault = found.fault(BUILD_SECONDS if built else SECONDS)
        if not fault and not isinstance(found.result or found.error, Detection | BadInput |
                                        DetectionError):  # fmt: skip
            fault = f"answered {found.result!r}"
        figures = {"seconds of one built" if built else "seconds of one": found.seconds}
        if number == first + size - 1:
            figures["seconds of a thousand"] = (time.process_time() - start) * 1000 / size
        yield Case(f"input {number}", not fault, fault, figures)


def fuzzed(draw: random.Random, examples: list[dict[str, Any]], folder: Path) -> Any:
    """A harmed config, or ``folder`` with one in it, or with harmed settings of a tokenizer."""
    config, kind = draw.choice(examples), draw.randrange(4)
    if kind == 0:
        return mutated(config, draw)
    name = "tokenizer_config.json" if kind == 3 else "config.json"
    if kind == 1:
        content = json.dumps(mutated(config, draw)).encode()
    elif kind == 2:
        content = scrambled(json.dumps(config, default=str).encode(), draw)
    else:
        (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
        content = json.dumps(mutated(_tokenizer_settings(draw), draw)).encode()
    (folder / name).write_bytes(content)
    return folder


def _tokenizer_settings(draw: random.Random) -> dict[str, Any]:
    token = {"content": draw.choice(("<s>", "</s>", "<pad>", "[INST]")), "special": True}
    return {
        "bos_token": token, "eos_token": "</s>", "pad_token": None,
        "added_tokens_decoder": {"0": token, "1": {"content": "</s>"}},
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "auto_map": {"AutoTokenizer": ["x.Y", None]}, "model_max_length": 10**30,
    }  # fmt: skip


SUITE = Suite(
    "fuzzed-configs",
    "detection of any config ends in an answer or one clear refusal",
    cases,
    full=100_000,
    quick=2_000,
    baseline=defined_in("exams.soak.plain_inputs", "configs"),
)
