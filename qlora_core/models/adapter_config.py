"""What an ``adapter_config.json`` may say before PEFT acts on it.

Adapters come from strangers. PEFT matches some of their texts as regular expressions against
every module, can copy layers as often as it is told, and changes the base under some kinds of
initialisation; a rank of 10^12 is only noticed when memory is asked for.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft

from qlora_core.errors import BadInput

log = logging.getLogger("qlora-core")
MOST_RANK = 65_536
MOST_NAMES = 100_000
MOST_REPEATS = 3
"""``*``, ``+`` and ``{}`` in one expression: each multiplies the time by a path's length."""
_ESCAPED_OR_CLASS = re.compile(r"\\[^1-9]|\[\^?\]?[^\]]*\]")
_OFF = (None, False, "", 0)


def is_slow(expression: str) -> bool:
    """Whether matching may take longer than any model has time for, or cannot be tried at all.

    A repeated group may take exponential time; a text without any is polynomial in the number
    of its repeats.
    """
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return True
    bare = _ESCAPED_OR_CLASS.sub("x", expression)
    repeats = len(re.findall(r"[*+{]", bare))
    return (
        len(expression) > 10_000
        or repeats > MOST_REPEATS
        or re.search(r"\)[*+{]|\\", bare) is not None
    )


def check_adapter_config(config: Mapping[str, Any], file: Path) -> None:
    """Raise BadInput that names the first key of ``config`` that cannot be meant.

    Keys that the installed PEFT does not know are named in a warning: it ignores them.
    """
    if config.get("peft_type") != "LORA":
        kind = str(config.get("peft_type"))[:60]
        raise BadInput(f"{file.parent} is no LoRA adapter ({kind})", "use PEFT itself")
    for key, (holds, words) in _RULES.items():
        value = config.get(key)
        if (value is not None or key == "r") and not holds(value):
            raise BadInput(
                f"{file}: {key} = {str(value)[:80]!r} is not {words}", "take an undamaged copy"
            )
    for key in _NEVER:
        if config.get(key) not in (*_OFF, [], {}):
            raise BadInput(
                f"{file}: {key} is set, which reshapes the model or runs code beyond LoRA",
                "use PEFT itself, if you trust this adapter",
            )
    known = {field.name for field in fields(peft.LoraConfig)}
    unknown = sorted(str(key)[:60] for key, value in config.items()
                     if key not in known and value not in (*_OFF, [], {}))  # fmt: skip
    if unknown:
        log.warning("%s holds keys that this PEFT ignores: %s", file, ", ".join(unknown[:8]))


def _is_rank(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= MOST_RANK


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= 1e9


def _is_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_NAMES
        and all(isinstance(name, str) and 0 < len(name) <= 1_000 for name in value)
    )


def _is_target(value: Any) -> bool:
    return (isinstance(value, str) and not is_slow(value)) or _is_names(value)


def _pattern_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A mapping whose keys PEFT matches as expressions, with values of one kind."""
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= MOST_NAMES
        and all(not is_slow(key) and holds(item) for key, item in value.items())
    )


def _is_tokens(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(ids, list) and all(map(_is_whole, ids)) for ids in lists)


def _is_layers(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"a rank from 1 to {MOST_RANK:,}"),
    "lora_alpha": (_is_scale, "a finite number"),
    "lora_dropout": (lambda value: _is_scale(value) and 0 <= value <= 1, "a share from 0 to 1"),
    "target_modules": (_is_target, "a list of names or a plain expression"),
    "exclude_modules": (_is_target, "a list of names or a plain expression"),
    "target_parameters": (_is_names, "a list of names"),
    "modules_to_save": (_is_names, "a list of names"),
    "layers_to_transform": (_is_layers, "a list of layers' numbers"),
    "layers_pattern": (_is_target, "a list of names or a plain expression"),
    "rank_pattern": (_pattern_of(_is_rank), "a mapping of names to ranks"),
    "alpha_pattern": (_pattern_of(_is_scale), "a mapping of names to finite numbers"),
    "trainable_token_indices": (_is_tokens, "a list of tokens"),
    "alora_invocation_tokens": (_is_tokens, "a list of tokens"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "init_lora_weights": (
        lambda value: isinstance(value, bool) or value in ("gaussian", "orthogonal", "eva"),
        "one that leaves the base as it is",
    ),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "a name"),
    **{
        key: (lambda value: isinstance(value, bool), "true or false")
        for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
    },
}
_NEVER = ("layer_replication", "auto_mapping", "megatron_config", "loftq_config", "eva_config",
          "corda_config", "arrow_config", "use_qalora", "use_bdlora", "velora_config",
          "monteclora_config", "kasa_config", "lora_ga_config")  # fmt: skip
