"""Choose the architecture for a model's config, and keep every reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any

from qlora_core.errors import BadInput, DetectionError
from qlora_core.facts.architecture import Architecture, ModelConfig
from qlora_core.registry.manager import Registry
from qlora_core.registry.targets import ResolvedTargets


class Fit(IntEnum):
    """How specific a claim is. Only the most specific claims compete."""

    NONE = 0
    FALLBACK = 1
    CLASS_NAME = 2
    MODEL_TYPE = 3
    REFINED = 4


@dataclass(frozen=True)
class Verdict:
    """What one family says to a config."""

    name: str
    fit: Fit
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something that does not stop the run but that the user should know."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The choice, and why. ``to_dict`` is the stable contract of ``detect --json``."""

    model: str
    model_type: str
    config: ModelConfig
    architecture: Architecture
    provided_by: str
    version: str
    fit: Fit
    reason: str
    verdicts: tuple[Verdict, ...]
    targets: ResolvedTargets
    tokenizer: Mapping[str, Any]
    prompt_format: Mapping[str, Any]
    coverage: Mapping[str, Any] | None = None
    trainable_parameters: Mapping[str, Any] | None = None
    warnings: tuple[Notice, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the keys and their meaning only change with ``schema``."""
        return {
            "schema": 1,
            "model": self.model,
            "model_type": self.model_type,
            "architecture": {
                "name": self.architecture.name,
                "provided_by": self.provided_by,
                "version": self.version,
                "fit": self.fit.name.lower(),
                "reason": self.reason,
            },
            "verdicts": [
                {"name": v.name, "fit": v.fit.name.lower(), "reason": v.reason}
                for v in self.verdicts
            ],
            "targets": {
                "scope": self.targets.scope,
                "target_modules": self.targets.target_modules,
                "target_parameters": self.targets.target_parameters,
                "exclude_modules": self.targets.exclude_modules,
                "keep_unquantized": self.targets.keep_unquantized,
            },
            "coverage": None if self.coverage is None else dict(self.coverage),
            "tokenizer": dict(self.tokenizer),
            "prompt_format": dict(self.prompt_format),
            "trainable_parameters": (
                None if self.trainable_parameters is None else dict(self.trainable_parameters)
            ),
            "warnings": [
                {"code": w.code, "message": w.message, "remedy": w.remedy} for w in self.warnings
            ],
        }


def judge(architecture: Architecture, config: ModelConfig) -> Verdict:
    """How closely the family's claim fits, by model type first, then by class name."""
    name = architecture.name
    for where, part in (("", config), ("text_config.", config.get("text_config"))):
        if not isinstance(part, Mapping):
            continue
        model_type = part.get("model_type")
        if model_type in architecture.model_types:
            claim = f"{where}model_type is {model_type!r}"
            if architecture.where is None:
                return Verdict(name, Fit.MODEL_TYPE, claim)
            return _refined(architecture, architecture.where, part, claim)
    for class_name in config.get("architectures") or ():
        for pattern in architecture.class_names:
            if _matches(str(class_name), pattern):
                return Verdict(name, Fit.CLASS_NAME, f"class {class_name!r} matches {pattern!r}")
    types = ", ".join(architecture.model_types)
    return Verdict(
        name, Fit.NONE, f"claims model_type {types}" if types else "claims no model_type"
    )


def _matches(class_name: str, pattern: str) -> bool:
    """As ``fnmatchcase``, which compiles each pattern, and most are plain names."""
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(class_name, pattern)
    return class_name == pattern


def _refined(
    architecture: Architecture,
    where: Callable[[ModelConfig], bool],
    part: ModelConfig,
    claim: str,
) -> Verdict:
    condition = _first_line(where.__doc__) or "its condition"
    try:
        holds = where(copy.deepcopy(part))  # its own, to change as it likes
    except Exception as error:  # a config may hold any value where a plugin expects a number
        reason = f"{claim} but whether {condition} cannot be told: {type(error).__name__}: {error}"
        return Verdict(architecture.name, Fit.NONE, reason)
    if holds:
        return Verdict(architecture.name, Fit.REFINED, f"{claim} and it holds that {condition}")
    return Verdict(architecture.name, Fit.NONE, f"{claim} but it does not hold that {condition}")


def choose(
    config: ModelConfig, registry: Registry, *, name: str | None = None
) -> tuple[Architecture, Verdict, tuple[Verdict, ...]]:
    """The one architecture for ``config``, its verdict, and everybody's.

    ``name`` (``--architecture``) wins. Raises BadInput for an unknown name and
    DetectionError where nobody, or more than one, claims the model equally well.
    """
    known = registry.architectures
    verdicts = [judge(architecture, config) for architecture in known.values()]
    if name is not None:
        if name not in known:
            close = get_close_matches(name, known)
            raise BadInput(
                f"no architecture is called {name!r}"
                + (f"; close: {', '.join(close)}" if close else ""),
                "`qlora-core plugins` lists them all",
            )
        own = next(v for v in verdicts if v.name == name)
        chosen = Verdict(name, own.fit or Fit.FALLBACK, f"named by --architecture ({own.reason})")
        return known[name], chosen, _sorted([chosen, *(v for v in verdicts if v.name != name)])
    best = max((v.fit for v in verdicts), default=Fit.NONE)
    if best is Fit.NONE:
        return _fallback(config, registry, verdicts)
    winners = [v for v in verdicts if v.fit is best]
    beaten = {loser for v in winners for loser in known[v.name].supersedes}
    winners = [v for v in winners if v.name not in beaten]
    if len(winners) != 1:
        raise _ambiguous(winners, registry)
    family = known[winners[0].name]
    if is_nested(config, family):
        family = _as_part(family, config, registry)
    return family, winners[0], _sorted(verdicts)


def is_nested(config: ModelConfig, family: Architecture) -> bool:
    """Whether the family claims only the text part of a model of another type."""
    part = config.get("text_config")
    inner = part.get("model_type") if isinstance(part, Mapping) else None
    return inner in family.model_types and config.get("model_type") not in family.model_types


def _as_part(family: Architecture, config: ModelConfig, registry: Registry) -> Architecture:
    """The family with the layers of the whole model, its towers kept out.

    As it is where no plugin can read the structure: without torch, or for an unknown type.
    """
    try:
        inferred = registry.infer(config)
    except BadInput:
        return family
    if len(inferred) != 1:
        return family
    whole = inferred[0][0]
    return replace(family, targets=whole.targets, layout=whole.layout)


def _fallback(
    config: ModelConfig, registry: Registry, verdicts: list[Verdict]
) -> tuple[Architecture, Verdict, tuple[Verdict, ...]]:
    inferred = registry.infer(config)
    if len(inferred) == 1:
        architecture, record = inferred[0]
        reason = (
            f"no family describes model_type {config.get('model_type')!r}; "
            f"read off the model's structure by plugin {record.name!r}"
        )
        verdict = Verdict(architecture.name, Fit.FALLBACK, reason)
        return architecture, verdict, _sorted([verdict, *verdicts])
    if inferred:
        raise _ambiguous([Verdict(a.name, Fit.FALLBACK, r.name) for a, r in inferred], registry)
    model_type = config.get("model_type")
    known = sorted({t for a in registry.architectures.values() for t in a.model_types})
    close = get_close_matches(str(model_type), known)
    raise DetectionError(
        f"nobody knows model_type {model_type!r}"
        + (f"; close: {', '.join(close)}" if close else ""),
        "check config.json, name a family with --architecture, "
        "or write a plugin: `qlora-core plugins new`",
    )


def _ambiguous(winners: Iterable[Verdict], registry: Registry) -> DetectionError:
    def origin(name: str) -> str:
        record = registry.provided_by(name)
        return f"{name} (plugin {record.name!r} of {record.source})" if record else name

    names = [v.name for v in winners]
    return DetectionError(
        f"{len(names)} architectures claim this model equally well: "
        + ", ".join(map(origin, names)),
        f"choose with --architecture {names[0] if names else 'NAME'}, switch one off with --block, "
        "or let one name the other in `supersedes`",
    )


def _sorted(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    return tuple(sorted(verdicts, key=lambda v: (-v.fit, v.name)))


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0].rstrip(".")
