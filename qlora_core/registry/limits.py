"""What a model's config may say before anything acts on it.

A ``config.json`` comes from strangers. Its values decide how many modules are built, and one of
them can make a library fetch and run code: both are bounded here, once, for every command.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qlora_core.errors import BadInput

MAX_DEPTH = 64
"""Objects and lists within each other. Real configs have some five."""
LAYERS = re.compile(
    r"(^|_)(n|num)_(.*_)?(layer|block)s?(_|$)|_layers$|(layer|block)_types?$|^depths?$|pattern$"
)
SIZES = re.compile(r"size|dim$|rank$|^d_|positions|_length$|_len$|^n_(ctx|embd|embed|inner|vocab)$")
COUNTS = re.compile(r"^(n|num)_|heads?$|experts?$|groups?$")
NAMES = re.compile(r"^(model_type|architectures)$")
LIMITS = ((NAMES, 200), (LAYERS, 1_024), (SIZES, 2**28), (COUNTS, 2**20))
"""The first rule that fits a key bounds its numbers, and the length of its lists and texts.

The deepest published models have some 130 layers; vocabularies stay below a million tokens.
"""
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("model_type", str, "text"),
    ("architectures", list | tuple, "a list of class names"),
    ("text_config", Mapping, "an object"),
    ("auto_map", Mapping, "an object"),
    ("quantization_config", Mapping, "an object"),
)


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Refuse what no model has: absurd numbers, deep nesting, values of another kind.

    Raises BadInput that names the key. Walks without recursion, in the order of the file.
    """
    for key, kind, words in _KINDS:
        if not isinstance(config.get(key), kind | None):
            raise _refused(name, key, f"is {_short(config[key])}, expected {words}")
    todo: list[tuple[str, Any, int]] = [("config", config, 1)]
    while todo:
        key, value, depth = todo.pop()
        if isinstance(value, Mapping | list | tuple):
            if depth > MAX_DEPTH:
                raise _refused(name, key, f"is nested more than {MAX_DEPTH} deep")
            pairs = value.items() if isinstance(value, Mapping) else ((key, v) for v in value)
            todo.extend((str(k), v, depth + 1) for k, v in pairs)
        _check_value(name, key, value)


def _check_value(name: str, key: str, value: Any) -> None:
    if isinstance(value, str) and key.endswith("_implementation") and "/" in value:
        raise _refused(name, key, f"is {_short(value)}: a kernel to be downloaded and run")
    if isinstance(value, bool) or value is None:
        return
    most = _limit(key)
    if isinstance(value, int | float):
        if most is not None and not -1 <= value <= most:
            raise _refused(name, key, f"is {_short(value)}, at most {most:,} is possible")
        if not math.isinf(value) and abs(value) >= 2**63:
            raise _refused(name, key, f"is {_short(value)}, which no field of a model holds")
    elif most is not None and isinstance(value, str | list | tuple) and len(value) > most:
        raise _refused(name, key, f"has {len(value):,} entries, at most {most:,} are possible")


@lru_cache
def _limit(key: str) -> int | None:
    return next((most for rule, most in LIMITS if rule.search(key)), None)


def _refused(name: str, key: str, what: str) -> BadInput:
    return BadInput(f"{name}: {_short(key)} {what}", "check config.json against the model's card")


def _short(value: Any) -> str:
    """The value as an error may show it: one line, no control characters, no megabytes."""
    if isinstance(value, Mapping | list | tuple):
        return "an object" if isinstance(value, Mapping) else "a list"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
