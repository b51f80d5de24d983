"""From a scope that a user names to what ``peft.LoraConfig`` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import ROLES, Architecture, LoraTargets

SCOPES = {
    "attention": ("attention",),
    "all": ("attention", "mlp", "recurrent"),
    "experts": ("experts",),
}
"""What users may ask for by name. ``all`` is everything but routed experts."""
_REGEX_SIGNS = frozenset("*+?()[]{}|\\^$")


@dataclass(frozen=True, kw_only=True)
class ResolvedTargets:
    """What to hand to PEFT. Never names a layer by its number."""

    scope: str
    target_modules: list[str] | str
    target_parameters: list[str]
    exclude_modules: str | None
    keep_unquantized: list[str]
    renamed: tuple[str, ...] = ()
    """Layers that are not among ``target_modules``, as plain PEFT would take their names for
    experts. It takes their weights as ``target_parameters``, unless towers have such layers."""

    @property
    def layers(self) -> list[str] | str:
        """The linear layers that are meant, by their own names."""
        modules = self.target_modules
        return modules if isinstance(modules, str) else [*modules, *self.renamed]


def resolve_targets(
    architecture: Architecture, scope: str = "all", *, model_type: str = ""
) -> ResolvedTargets:
    """The layers that ``scope`` means for this family.

    ``scope`` is ``attention``, ``all``, ``all,experts``, a comma-separated list of layer
    names, or a regular expression that PEFT matches against whole module paths.
    With the ``model_type`` of the model names are such as plain PEFT takes as they are.
    Raises BadInput for an empty scope, an invalid expression, and a misspelt name
    of a family whose names are known.
    """
    targets = architecture.targets
    modules: list[str] | str
    parameters: list[str] = []
    if _REGEX_SIGNS & set(scope):
        modules = _checked_regex(scope)
    else:
        names = [name.strip() for name in scope.split(",") if name.strip()]
        modules, parameters = _by_name(architecture, names)
    if not modules and not parameters:
        known = ", ".join(sorted(targets.by_role())) or "none"
        raise BadInput(
            f"--targets {scope!r} selects no layer of {architecture.name} (its roles: {known})",
            "use attention, all, all,experts, layer names, or a regular expression",
        )
    taken = targets.taken_for_experts.get(model_type, ())
    renamed: list[str] = []
    if isinstance(modules, list):
        renamed = [name for name in modules if name.rpartition(".")[2] in taken]
        modules = [name for name in modules if name not in renamed]
    if not targets.outside:  # PEFT's exclude_modules is no limit to parameters
        parameters = [*parameters, *(f"{name}.weight" for name in renamed)]
    return ResolvedTargets(
        scope=scope,
        target_modules=modules,
        target_parameters=parameters,
        exclude_modules=_exclude(targets),
        keep_unquantized=[*architecture.layout.head, *targets.keep_unquantized],
        renamed=tuple(renamed),
    )


def _by_name(architecture: Architecture, names: list[str]) -> tuple[list[str], list[str]]:
    roles = architecture.targets.by_role()
    modules: list[str] = []
    parameters: list[str] = []
    for name in names:
        for role in SCOPES.get(name, ()):
            (parameters if role == "experts" else modules).extend(roles.get(role, ()))
        if name not in SCOPES:
            parameter = name in roles.get("experts", ())
            (parameters if parameter else modules).append(_checked_name(architecture, name))
    return list(dict.fromkeys(modules)), list(dict.fromkeys(parameters))


def _checked_name(architecture: Architecture, name: str) -> str:
    """``name`` if it may be a layer of this family: the last part of one that it states."""
    targets = architecture.targets
    known = [n for role in ROLES for n in targets.by_role().get(role, ())] + list(targets.never)
    leaves = {leaf.rpartition(".")[2] for leaf in known}
    if not known or name.rpartition(".")[2] in leaves:
        return name
    close = get_close_matches(name, {*known, *leaves, *SCOPES}, n=3)
    raise BadInput(
        f"{architecture.name} has no layer called {name!r}"
        + (f"; close: {', '.join(close)}" if close else ""),
        f"its layers: {', '.join(known)}; or use attention or all",
    )


def _checked_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise BadInput(
            f"--targets {pattern!r} is no valid expression: {error}", "mend it"
        ) from None
    return pattern


def _exclude(targets: LoraTargets) -> str | None:
    """An expression for PEFT's ``exclude_modules`` (matched against whole paths)."""
    if not targets.outside:
        return None
    names = "|".join(re.escape(name) for name in targets.outside)
    return rf"(.*\.)?({names})(\..*)?"
