"""Which layers of a model a scope means, judged by the model itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn
from transformers.pytorch_utils import Conv1D

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.peft_names import adaptable, is_suffix, taken_names
from qlora_core.models.quantization import is_within, output_head
from qlora_core.registry.detection import Notice
from qlora_core.registry.targets import SCOPES, ResolvedTargets, resolve_targets

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The layers that are to carry adapters, and how to say so to PEFT."""

    modules: Mapping[str, str]
    """Path of every linear layer to adapt -> its role."""
    parameters: tuple[str, ...]
    """Paths of expert parameters to adapt: stacks, or matrices of experts one below another."""
    target_modules: list[str] | str
    target_parameters: list[str]
    exclude_modules: str | None
    notices: tuple[Notice, ...] = ()
    """What the scope means and gets no adapter."""


def select_layers(model: nn.Module, architecture: Architecture, scope: str = "all") -> Selection:
    """The layers of ``model`` that ``scope`` means (see ``resolve_targets`` for scopes).

    Raises BadInput for a name that no layer of the model has, with the names it has; for the
    head, routers and other layers that must not be adapted; and for what PEFT cannot adapt.
    """
    linear = {path: module for path, module in model.named_modules() if adaptable(module)}
    wanted = _wanted(architecture, scope)
    forbidden = _forbidden(model, architecture, linear)
    if isinstance(wanted.target_modules, str):
        chosen = _by_expression(model, wanted, linear, forbidden)
    else:
        chosen = _by_names(wanted, linear, forbidden, architecture, scope)
    if isinstance(chosen, str) and taken_names(["gate_proj", "w1"], model, architecture):
        # PEFT reduces an expression to the last names of what it means
        chosen = [path for path in linear if hit(path, chosen, wanted.exclude_modules)]
    hits = [p for p in linear if hit(p, chosen, wanted.exclude_modules)]
    excluded = sorted(forbidden[path][0] for path in hits if path in forbidden)
    return Selection(
        modules={p: role_of(p, architecture) for p in hits if p not in forbidden},
        parameters=_expert_parameters(model, wanted.target_parameters),
        target_modules=chosen,
        target_parameters=wanted.target_parameters,
        exclude_modules=join_excluded(wanted.exclude_modules, excluded),
        notices=notices_of(passed_over(model, architecture, wanted), scope),
    )


def passed_over(
    model: nn.Module, architecture: Architecture, targets: ResolvedTargets
) -> dict[str, str]:
    """What an expression matches and no adapter can stand on -> why.

    Modules without weights of their own are no candidates. Lists name layers, and are refused
    where one cannot be adapted: for them there is nothing to say.
    """
    if not isinstance(targets.target_modules, str):
        return {}
    linear = {path: module for path, module in model.named_modules() if adaptable(module)}
    forbidden = _forbidden(model, architecture, linear)
    found = {}
    for path, module in model.named_modules():
        if not hit(path, targets.target_modules, None):
            continue
        if path in forbidden:
            found[path] = forbidden[path][1]
        elif path in linear:
            if targets.exclude_modules and re.fullmatch(targets.exclude_modules, path):
                found[path] = "no part of the text model"
        elif any(True for _ in module.parameters(recurse=False)):
            found[path] = "no linear layer"
    return found


def notices_of(passed: Mapping[str, str], scope: str) -> tuple[Notice, ...]:
    """``passed`` as one notice, by reason; none where nothing was passed over."""
    if not passed:
        return ()
    reasons: dict[str, list[str]] = {}
    for path, why in passed.items():
        reasons.setdefault(why, []).append(path)
    parts = (
        f"{len(paths)} ({', '.join(paths[:_SHOWN])}{', ...' if len(paths) > _SHOWN else ''}): {why}"
        for why, paths in reasons.items()
    )
    return (
        Notice(
            "targets-without-adapter",
            f"training puts no adapter on {len(passed)} modules that --targets {scope!r} matches: "
            + "; ".join(parts),
            "narrow the expression to linear layers of the decoder",
        ),
    )


def role_of(path: str, architecture: Architecture) -> str:
    """The role that the family gives to the layer at ``path``; ``other`` where it gives none."""
    for role, names in architecture.targets.by_role().items():
        if ends_with(path, names):
            return role
    return "other"


def ends_with(path: str, names: Iterable[str]) -> bool:
    """PEFT's rule for lists: one of ``names`` is the path or a dotted suffix of it."""
    return any(is_suffix(name, path) for name in names)


def hit(path: str, targets: list[str] | str, exclude: str | None) -> bool:
    """Whether PEFT would adapt the module at ``path``."""
    if exclude is not None and re.fullmatch(exclude, path):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return ends_with(path, targets)


def _wanted(architecture: Architecture, scope: str) -> ResolvedTargets:
    """What the family says to the scope; names outside its vocabulary are left to the model."""
    names = [name.strip() for name in scope.split(",") if name.strip()]
    words = [name for name in names if name in SCOPES]
    own = [name for name in names if name not in SCOPES]
    experts = [name for name in own if name in architecture.targets.experts]
    if not names or any(sign in scope for sign in "*+?()[]{}|\\^$"):
        return resolve_targets(architecture, scope)
    if words:
        base = resolve_targets(architecture, ",".join(words))
    else:
        base = resolve_targets(architecture, "^$")  # a regular expression that selects nothing
    modules = base.target_modules if isinstance(base.target_modules, list) else []
    return ResolvedTargets(
        scope=scope,
        target_modules=[*modules, *(n for n in own if n not in experts and n not in modules)],
        target_parameters=list(dict.fromkeys([*base.target_parameters, *experts])),
        exclude_modules=base.exclude_modules,
        keep_unquantized=base.keep_unquantized,
    )


def _forbidden(
    model: nn.Module, architecture: Architecture, linear: Mapping[str, nn.Module]
) -> dict[str, tuple[str, str]]:
    """Path of every linear layer that must not be adapted -> (name to exclude it by, why)."""
    head = output_head(model)
    found = {}
    for path, module in linear.items():
        if module is head:
            found[path] = (path, "it is the output head: its adapter is as large as the vocabulary")
        for name, why in architecture.targets.never.items():
            if ends_with(path, [name]) or is_within(path, [name]):
                found[path] = (name, why)
    return found


def namesakes(model: nn.Module, chosen: list[str] | str) -> set[str]:
    """Where 4-bit expert stacks bear the name of a chosen layer: plain PEFT fails on those."""
    stacks = (path for path, part in model.named_modules() if isinstance(part, ExpertStack))
    return {".".join(path.split(".")[-2:]) for path in stacks if hit(path, chosen, None)}


def _by_names(
    wanted: ResolvedTargets,
    linear: Mapping[str, nn.Module],
    forbidden: Mapping[str, tuple[str, str]],
    architecture: Architecture,
    scope: str,
) -> list[str]:
    stated = {name for names in architecture.targets.by_role().values() for name in names}
    asked = [name.strip() for name in scope.split(",")]
    chosen = []
    for name in wanted.target_modules:
        hits = [path for path in linear if hit(path, [name], wanted.exclude_modules)]
        if not hits and (name in asked or name not in stated):
            raise _no_layer(name, linear)
        reasons = [forbidden[path][1] for path in hits if path in forbidden]
        if hits and len(reasons) == len(hits) and name in asked:
            raise BadInput(f"{name} must not be adapted: {reasons[0]}", "leave it out of --targets")
        if len(reasons) < len(hits):
            chosen.append(name)
    if not chosen and not wanted.target_parameters:
        raise BadInput(
            f"no layer of this model is among those of {architecture.name}: "
            + ", ".join(wanted.target_modules),
            "check --architecture; `qlora-core detect --build` shows the model's layers",
        )
    return chosen


def _by_expression(
    model: nn.Module,
    wanted: ResolvedTargets,
    linear: Mapping[str, nn.Module],
    forbidden: Mapping[str, tuple[str, str]],
) -> list[str] | str:
    """The expression itself where it means linear layers only, else the paths it means."""
    expression = str(wanted.target_modules)
    everything = [p for p, _ in model.named_modules() if hit(p, expression, wanted.exclude_modules)]
    layers = [path for path in everything if path in linear and path not in forbidden]
    if not layers:
        raise BadInput(
            f"--targets {expression!r} matches no linear layer that may be adapted",
            "an expression is compared with whole paths, such as "
            + next(iter(linear), "model.layers.0.mlp.down_proj"),
        )
    return expression if set(everything) == set(layers) else layers


def _expert_parameters(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    paths = [path for path, _ in model.named_parameters()]
    paths += [path for path, part in model.named_modules() if isinstance(part, ExpertStack)]
    found = tuple(path for path in paths if ends_with(path, names))
    if not found:
        raise BadInput(f"no expert parameter is called {', '.join(names)}", "use --targets all")
    return found


def join_excluded(stated: str | None, names: Iterable[str]) -> str | None:
    """An expression for PEFT's ``exclude_modules``: what was stated, and modules of these names."""
    parts = [stated] if stated else []
    parts += [rf"(.*\.)?{re.escape(name)}(\..*)?" for name in dict.fromkeys(names)]
    return "|".join(f"({part})" for part in parts) if len(parts) > 1 else next(iter(parts), None)


def _no_layer(name: str, linear: Mapping[str, nn.Module]) -> BadInput:
    shapes = Counter((path.rpartition(".")[2], _shape(module)) for path, module in linear.items())
    leaves = sorted({leaf for leaf, _ in shapes})
    close = get_close_matches(name.rpartition(".")[2], leaves, n=2)
    table = ", ".join(f"{leaf} ({count} of {shape})" for (leaf, shape), count in shapes.items())
    return BadInput(
        f"this model has no linear layer called {name!r}"
        + (f"; close: {', '.join(close)}" if close else ""),
        f"its linear layers: {table}",
    )


def _shape(module: nn.Module) -> str:
    if isinstance(module, Conv1D):
        return f"{module.weight.shape[0]}->{module.nf}"
    return f"{module.in_features}->{module.out_features}"
