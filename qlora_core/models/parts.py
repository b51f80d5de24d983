"""The parts of a model that matter for adapters and for 4-bit weights, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qlora_core.facts.architecture import Layout, LoraTargets
from qlora_core.models.names import heads, hits, shortest_suffixes, tails
from qlora_core.models.roles import ADAPTABLE, NEVER


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One linear map of the model: ``nn.Linear``, a subclass of it, or ``Conv1D``."""

    path: str
    in_features: int
    out_features: int
    kind: str
    """``linear``, ``subclass`` or ``conv1d``."""
    role: str
    """``attention``, ``mlp``, ``recurrent``; ``head``, ``outside`` (a tower), ``other`` (text,
    but in no decoder layer); or one of ``roles.NEVER``."""
    layer: str | None
    """Path of the decoder layer that it lies in."""
    keep: str | None
    """Why it must not become a 4-bit module."""

    @property
    def parameters(self) -> int:
        """Elements of its weight."""
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class ExpertStack:
    """The weights of all experts of one layer in one parameter, experts first."""

    path: str
    shape: tuple[int, ...]
    layer: str

    @property
    def parameters(self) -> int:
        """Elements of the stack."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The parts of a model that matter for adapters and for 4-bit weights."""

    layers: tuple[str, ...]
    """Paths of the decoder layers."""
    linears: tuple[LinearLayer, ...]
    experts: tuple[ExpertStack, ...]
    routers: tuple[str, ...]
    """Paths of the modules that choose experts, linear layers or not."""
    outside: tuple[str, ...]
    """Paths of towers and projectors: what is not the text model."""
    head: str | None
    embeddings: str | None
    final_norm: str | None
    modules: tuple[str, ...]
    parameters: int
    """Of the whole model; tied weights count once."""
    taken_for_experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As a family states it, of the installed PEFT."""

    def adaptable(self, *kinds: str) -> list[LinearLayer]:
        """The layers that may carry an adapter, of these roles or of all."""
        return [linear for linear in self.linears if linear.role in (kinds or ADAPTABLE)]

    def targets(self) -> LoraTargets:
        """What a family with this structure states, in the shortest names that are unambiguous."""
        names, _, outside = self._names
        stacks = {stack.path: within(stack.path, stack.layer) for stack in self.experts}
        experts, _ = shortest_suffixes({"experts": stacks}, self.modules, least=2)
        return LoraTargets(
            attention=names["attention"],
            mlp=names["mlp"],
            recurrent=names["recurrent"],
            experts=experts["experts"],
            never={name: reason for role, reason in NEVER.items() for name in names[role]},
            outside=outside,
            keep_unquantized=self._kept(),
            dequantize_on_access=tuple(self._kept()),
            taken_for_experts=self.taken_for_experts,
        )

    def nameless(self) -> frozenset[str]:
        """Paths of layers that no suffix without a layer's number tells from others."""
        return self._names[1]

    def layout(self) -> Layout:
        """Where the parts lie, as a family states it."""
        plain = Layout()
        return Layout(
            layers=self.layers[0].rpartition(".")[0] if self.layers else plain.layers,
            final_norm=self.final_norm or plain.final_norm,
            embeddings=self.embeddings or plain.embeddings,
            head=(self.head,) if self.head else (),
        )

    def reached(self, suffixes: tuple[str, ...], outside: tuple[str, ...] = ()) -> set[str]:
        """Paths of all modules that PEFT adapts when given ``suffixes``."""
        return {path for path in hits(self.modules, suffixes) if not below(path, outside)}

    @cached_property
    def _names(self) -> tuple[dict[str, tuple[str, ...]], frozenset[str], tuple[str, ...]]:
        """Suffixes for each role, the adaptable layers that have none, and what stands outside.

        Where a name means a layer of cross-attention as well, that block stands outside too.
        """
        outside = self._names_of(self.outside)
        found, nameless = self._names_beside(outside)
        if nameless and (blocks := self._idle_blocks()):
            outside = (*outside, *self._names_of(blocks))
            found, nameless = self._names_beside(outside)
        return found, nameless, outside

    def _names_beside(
        self, outside: tuple[str, ...]
    ) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
        """Suffixes that mean nothing else but what lies below ``outside``."""
        groups: dict[str, dict[str, str]] = {role: {} for role in (*ADAPTABLE, *NEVER)}
        for linear in self.linears:
            if linear.role in groups:
                groups[linear.role][linear.path] = within(linear.path, linear.layer)
        for path in self.routers:
            layer = next((name for name in self.layers if path.startswith(f"{name}.")), None)
            groups["router"].setdefault(path, within(path, layer))
        wanted = {path for role in ADAPTABLE for path in groups[role]}
        others = [path for path in self.modules if path not in wanted and not below(path, outside)]
        found, nameless = shortest_suffixes({role: groups[role] for role in ADAPTABLE}, others)
        barred, _ = shortest_suffixes({role: groups[role] for role in NEVER}, wanted, least=2)
        return {**found, **barred}, nameless

    def _idle_blocks(self) -> tuple[str, ...]:
        """The largest modules of decoder layers whose linear layers all are cross-attention."""
        busy = {tail for x in self.adaptable() for tail in heads(x.path)}
        found: dict[str, None] = {}
        for linear in self.linears:
            if linear.role == "cross":
                inner = (path for path in heads(linear.path) if path not in busy)
                found[next(inner, linear.path)] = None
        return tuple(found)

    def _kept(self) -> dict[str, str]:
        reasons: dict[str, dict[str, str]] = {}
        for linear in self.linears:
            if linear.keep:
                inner = within(linear.path, linear.layer)
                reasons.setdefault(linear.keep, {})[linear.path] = inner
        kept = {path for paths in reasons.values() for path in paths}
        found, _ = shortest_suffixes(reasons, (x.path for x in self.linears if x.path not in kept))
        return {name: reason for reason, names in found.items() for name in names}

    def _names_of(self, outside: tuple[str, ...]) -> tuple[str, ...]:
        """A name for each module: its last component, unless what is not outside uses that too."""
        text = {
            tail
            for path in self.modules
            if not any(path == top or path.startswith(f"{top}.") for top in outside)
            for tail in tails(path)
        }
        names = (next((t for t in tails(top) if t not in text), top) for top in outside)
        return tuple(dict.fromkeys(names))


def below(path: str, names: tuple[str, ...]) -> bool:
    """Whether ``path`` is, or lies below, a module of one of ``names`` (``exclude_modules``)."""
    return any(f".{name}." in f".{path}." for name in names)


def within(path: str, layer: str | None) -> str:
    """``path`` as seen from its decoder layer; as it is where it lies in none."""
    return path[len(layer) + 1 :] if layer and path.startswith(f"{layer}.") else path
