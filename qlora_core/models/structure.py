"""Read off a model's structure what a family states: the judge of the facts.

Works on a skeleton (``build_skeleton``) as well as on a loaded model, runs nothing but single
linear layers on the meta device, and knows no family by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from qlora_core.models import roles
from qlora_core.models.parts import ExpertStack, LinearLayer, Structure, within
from qlora_core.models.roles import Link

__all__ = ["ExpertStack", "LinearLayer", "Structure", "analyse"]

_SENSES = re.compile(r"vision|visual|image|video|audio|speech|vq|perceiver|qformer", re.IGNORECASE)
_LEAST_SHARE = 0.001
"""A module list with less of the linear weights is not a list of decoder layers."""


def analyse(model: nn.Module) -> Structure:
    """The structure of a transformers model, loaded or on the meta device. Takes seconds."""
    return _Analysis(model).structure()


class _Analysis:
    """The steps of one analysis, each using what the earlier ones found."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = {path: module for path, module in model.named_modules() if path}
        self.head = self._path(_asked(model, "get_output_embeddings"))
        self.embeddings = self._path(_asked(model, "get_input_embeddings"))
        self.text_config = _text_config(getattr(model, "config", None))
        self.outside = self._towers()
        self.lists = self._layer_lists()
        self.layers = [f"{top}.{name}" for top in self.lists for name, _ in
                       self.modules[top].named_children()]  # fmt: skip
        self.numbers = _expert_numbers(self.text_config)
        self.experts = list(self._expert_stacks())

    def structure(self) -> Structure:
        linears = tuple(self._linears())
        return Structure(
            layers=tuple(self.layers),
            linears=linears,
            experts=tuple(self.experts),
            routers=(*(x.path for x in linears if x.role == "router"), *self._router_modules()),
            outside=tuple(self.outside),
            head=self.head,
            embeddings=self.embeddings,
            final_norm=self._final_norm(),
            modules=tuple(self.modules),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            taken_for_experts=self._taken_for_experts(linears) if self.experts else {},
        )

    def _taken_for_experts(self, linears: tuple[LinearLayer, ...]) -> dict[str, tuple[str, ...]]:
        """Names of adaptable layers that the installed PEFT takes for those of experts."""
        from qlora_core.models.peft_names import rewritten_names  # imports PEFT: experts only

        names = {x.path.rpartition(".")[2] for x in linears if x.role in roles.ADAPTABLE}
        taken = rewritten_names(sorted(names), self.model)
        kind = str(getattr(getattr(self.model, "config", None), "model_type", ""))
        return {kind: tuple(taken)} if taken else {}

    def _path(self, part: Any) -> str | None:
        return next((path for path, module in self.modules.items() if module is part), None)

    def _towers(self) -> list[str]:
        """Modules of another config than the text's that serve another sense, and what stands
        beside the text model of a composite.
        """
        text = self._text_root()
        core = [path for path in (text, self.embeddings, self.head) if path]
        found: dict[str, None] = {}
        senses = _sense_configs(getattr(self.model, "config", None))
        for path, module in self.modules.items():
            beside = text and not _related(path, [text, *([self.head] if self.head else [])])
            if beside or type(getattr(module, "config", None)) in senses:
                top = self._highest_apart(path, core)
                if top and not any(_covers(known, top) for known in found):
                    found[top] = None
        return list(found)

    def _text_root(self) -> str | None:
        """The text model of a composite, or None where the whole model is it."""
        wanted = type(self.text_config)
        if self.embeddings is None or type(getattr(self.model, "config", None)) is wanted:
            return None
        parts = self.embeddings.split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if type(getattr(self.modules[path], "config", None)) is wanted:
                return path
        return None

    def _highest_apart(self, path: str, core: list[str]) -> str | None:
        """The highest module around ``path`` that holds nothing of ``core``."""
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            top = ".".join(parts[:end])
            if not any(_covers(top, part) for part in core):
                return top if not any(_covers(part, top) for part in core[1:]) else None
        return None

    def _layer_lists(self) -> list[str]:
        """The outermost module lists whose elements hold the model's linear weights."""
        mass: dict[str, int] = {}
        for path, module in self.modules.items():
            apart = any(_covers(top, path) for top in self.outside)
            inner = any(_covers(known, path) for known in mass)
            if isinstance(module, nn.ModuleList) and not apart and not inner:
                weight = sum(map(_linear_weight, module))
                if weight and path != self.head:
                    mass[path] = weight
        enough = _LEAST_SHARE * sum(mass.values())
        return sorted((p for p in mass if mass[p] >= enough), key=lambda p: -mass[p])

    def _layer_of(self, path: str) -> str | None:
        for top in self.lists:
            if path.startswith(f"{top}."):
                return f"{top}.{path[len(top) + 1 :].partition('.')[0]}"
        return None

    def _expert_stacks(self) -> Iterator[ExpertStack]:
        for path, module in self.modules.items():
            layer = self._layer_of(path)
            if layer is None or roles.linear_kind(module) is not None:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if self._is_stack(f"{within(path, layer)}.{name}", parameter.shape):
                    yield ExpertStack(
                        path=f"{path}.{name}", shape=tuple(parameter.shape), layer=layer
                    )

    def _is_stack(self, path: str, shape: tuple[int, ...]) -> bool:
        named = "expert" in path.lower()
        if not self.numbers or path.endswith("bias"):
            return False
        if len(shape) == 3:
            return named or shape[0] in self.numbers
        return len(shape) == 2 and named and any(shape[0] > n for n in self.numbers)

    def _linears(self) -> Iterator[LinearLayer]:
        for path, module in self.modules.items():
            kind = roles.linear_kind(module)
            if kind is None:
                continue
            layer = self._layer_of(path)
            chain = self._chain(path, layer) if layer and layer != path else []
            width_in, width_out = roles.features(module)
            yield LinearLayer(
                path=path,
                in_features=width_in,
                out_features=width_out,
                kind=kind,
                role=self._role(path, module, chain),
                layer=layer,
                keep=roles.keep_reason(chain) if chain else None,
            )

    def _role(self, path: str, module: nn.Module, chain: list[Link]) -> str:
        if self.head and _covers(self.head, path):
            return "head"
        if any(_covers(top, path) for top in self.outside):
            return "outside"
        return roles.role(chain, module, self._experts_around(path)) if chain else "other"

    def _chain(self, path: str, layer: str) -> list[Link]:
        parts = path[len(layer) + 1 :].split(".")
        links = [Link("", self.modules[layer])]
        for end in range(1, len(parts) + 1):
            inner = ".".join(parts[:end])
            links.append(Link(parts[end - 1], self.modules[f"{layer}.{inner}"]))
        return links

    def _experts_around(self, path: str) -> set[int]:
        """Numbers of experts of the routed blocks that the module at ``path`` lies in."""
        found = set()
        for stack in self.experts:
            block = stack.path.rpartition(".")[0].rpartition(".")[0]
            if path.startswith(f"{block}.") and block != stack.layer:
                found.add(stack.shape[0] if len(stack.shape) == 3 else max(self.numbers))
        return found

    def _router_modules(self) -> Iterator[str]:
        """Routers that are no linear layers: a matrix with one row per expert."""
        owners = {stack.path.rpartition(".")[0] for stack in self.experts}
        for path, module in self.modules.items():
            if self._layer_of(path) is None or path in owners or roles.linear_kind(module):
                continue
            shapes = [p.shape for p in module._parameters.values() if p is not None and p.ndim == 2]
            if any(shape[0] in self.numbers for shape in shapes) and roles.names_router(
                path.rpartition(".")[2], module
            ):
                yield path

    def _final_norm(self) -> str | None:
        """The norm beside the decoder layers: the first after them that is no embedding's."""
        if not self.lists:
            return None
        parent, _, last = self.lists[0].rpartition(".")
        beside = list((self.modules[parent] if parent else self.model).named_children())
        norms = [name for name, module in beside if "norm" in type(module).__name__.lower()]
        order = [name for name, _ in beside]
        late = [name for name in norms if order.index(name) > order.index(last)]
        plain = [name for name in late if "embed" not in name]
        name = next(iter((*plain, *late, *norms)), None)
        return f"{parent}.{name}".lstrip(".") if name else None


def _linear_weight(element: nn.Module) -> int:
    """Elements of the weights of linear layers and expert stacks below ``element``."""
    if roles.linear_kind(element) is not None:
        return 0
    return sum(
        parameter.numel()
        for module in element.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 3 or (parameter.ndim == 2 and roles.linear_kind(module) is not None)
    )


def _covers(top: str, path: str) -> bool:
    return path == top or path.startswith(f"{top}.")


def _related(path: str, others: list[str]) -> bool:
    return any(_covers(path, other) or _covers(other, path) for other in others)


def _asked(model: nn.Module, question: str) -> Any:
    try:
        return getattr(model, question)()
    except (AttributeError, NotImplementedError):
        return None


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config(decoder=True)
    except (AttributeError, ValueError):
        return config


def _sense_configs(config: Any) -> set[type]:
    names = [name for name in getattr(config, "sub_configs", {}) if _SENSES.search(name)]
    return {type(getattr(config, name, None)) for name in names} - {type(None)}


def _expert_numbers(config: Any) -> set[int]:
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    nested = [value for value in values.values() if isinstance(value, dict)]
    items = [item for part in (values, *nested) for item in part.items()]
    return {
        value for key, value in items if "expert" in str(key) and type(value) is int and value > 1
    }
