"""What the chosen targets reach in a model of this config, and what will be in 4 bits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import transformers
from torch import nn

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import ROLES, Architecture
from qlora_core.models.names import hits
from qlora_core.models.parts import ExpertStack, LinearLayer, Structure, below
from qlora_core.models.quantization_report import MISSED, ON_ACCESS, STACKS, count_quantized
from qlora_core.models.roles import ADAPTABLE, NEVER
from qlora_core.models.selection import notices_of, passed_over
from qlora_core.models.skeleton import build_skeleton, register_classes, too_old_for
from qlora_core.models.structure import analyse
from qlora_core.registry.detection import Detection, Notice
from qlora_core.registry.targets import ResolvedTargets

BYTES_UNQUANTIZED = 2
"""Per weight that stays as the checkpoint has it: bfloat16 or float16."""
_FEW_LAYERS = 0.5


def with_structure(detection: Detection, *, rank: int = 16) -> Detection:
    """``detection`` with its coverage, its number of trainable parameters, and objections.

    These are what the structure of the model has against the stated targets. Builds the
    skeleton: seconds, no memory.

    Raises BadInput where transformers cannot build the config, and for a rank below one or
    past the dimensions of every adapted layer.
    """
    if rank < 1:
        raise BadInput(f"rank {rank} is below one", "common ranks are 8 to 64")
    skeleton = skeleton_of(detection)
    structure = analyse(skeleton)
    meant = adapted_layers(structure, detection.targets)
    passed = passed_over(skeleton, detection.architecture, detection.targets)
    layers = [layer for layer in meant if layer.path not in passed]
    stacks = adapted_stacks(structure, detection.targets)
    count = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    count += sum(_stack_adapter(stack, rank) for stack in stacks)
    return replace(
        detection,
        coverage={
            **_reach(structure, layers, stacks),
            "unquantized_bytes": unquantized_bytes(skeleton, detection.architecture),
            "by_role": _by_role(structure, layers, stacks),
        },
        trainable_parameters={
            "rank": rank,
            "count": count,
            "fraction": count / (structure.parameters + count),
        },
        warnings=(
            *detection.warnings,
            *_objections(structure, detection, meant),
            *notices_of(passed, detection.targets.scope),
            *_wide_ranks(layers, rank),
        ),
    )


def skeleton_of(detection: Detection) -> nn.Module:
    """The skeleton of a detected model, its family's own classes registered first."""
    register_classes(detection.architecture)
    return build_skeleton(detection.config)


def adapted_layers(structure: Structure, targets: ResolvedTargets) -> list[LinearLayer]:
    """The linear layers that carry an adapter when ``targets`` are meant."""
    if isinstance(targets.layers, str):
        pattern = re.compile(targets.layers)
        reached = {x.path for x in structure.linears if pattern.fullmatch(x.path)}
    else:
        reached = hits((x.path for x in structure.linears), targets.layers)
    barred = re.compile(targets.exclude_modules) if targets.exclude_modules else None
    return [
        layer
        for layer in structure.linears
        if layer.path in reached and not (barred and barred.fullmatch(layer.path))
    ]


def adapted_stacks(structure: Structure, targets: ResolvedTargets) -> list[ExpertStack]:
    """The expert parameters that PEFT adapts when given ``targets``."""
    reached = hits((stack.path for stack in structure.experts), targets.target_parameters)
    return [stack for stack in structure.experts if stack.path in reached]


def unquantized_bytes(skeleton: nn.Module, architecture: Architecture) -> int:
    """Bytes of the weights that the loader leaves in 16 bits: embeddings, head, norms, ..."""
    packed = {MISSED, ON_ACCESS, *([STACKS] if architecture.targets.experts else [])}
    shares = count_quantized(skeleton, architecture).unquantized
    kept = sum(share.weights for reason, share in shares.items() if reason not in packed)
    return BYTES_UNQUANTIZED * kept


def _reach(
    structure: Structure, layers: list[LinearLayer], stacks: list[ExpertStack]
) -> dict[str, float]:
    """The share of the decoder's matrix weights that carry adapters, and of its layers."""
    decoder = [x for x in structure.linears if x.layer is not None]
    parts: list[LinearLayer | ExpertStack] = [*decoder, *structure.experts]
    chosen: list[LinearLayer | ExpertStack] = [*layers, *stacks]
    weights = sum(part.parameters for part in parts)
    adapted = sum(part.parameters for part in chosen if part.layer is not None)
    reached = {part.layer for part in chosen} & set(structure.layers)
    return {
        "weights": adapted / max(weights, 1),
        "layers": len(reached) / max(len(structure.layers), 1),
    }


def _by_role(
    structure: Structure, layers: list[LinearLayer], stacks: list[ExpertStack]
) -> dict[str, dict[str, int]]:
    """For each role of the decoder: how many modules and weights it has, how many are adapted."""
    table: dict[str, dict[str, int]] = {}
    adapted = {x.path for x in layers} | {stack.path for stack in stacks}
    parts: list[tuple[str, LinearLayer | ExpertStack]] = [
        (layer.role, layer) for layer in structure.linears if layer.role in (*ADAPTABLE, *NEVER)
    ]
    for role, part in (*parts, *(("experts", stack) for stack in structure.experts)):
        row = table.setdefault(role, dict.fromkeys(("modules", "weights", "adapted"), 0))
        row["modules"] += 1
        row["weights"] += part.parameters
        row["adapted"] += part.path in adapted
    return {role: table[role] for role in (*ROLES, *NEVER) if role in table}


def _stack_adapter(stack: ExpertStack, rank: int) -> int:
    """PEFT gives each expert of a stack low-rank factors of its own."""
    experts, rows, columns = stack.shape if len(stack.shape) == 3 else (1, *stack.shape)
    return experts * rank * (rows + columns)


def _objections(
    structure: Structure, detection: Detection, layers: list[LinearLayer]
) -> Iterator[Notice]:
    targets = detection.targets.layers
    family = detection.architecture.name
    if too_old_for(detection.architecture):
        yield Notice(
            "older-transformers",
            f"{family} is described as of transformers {detection.architecture.since}, "
            f"and {transformers.__version__} is installed: names may differ",
            "update transformers, or compare with `qlora-core detect --build`",
        )
    if isinstance(targets, list):
        idle = [t for t in targets if not hits(structure.modules, [t])]
        if idle:
            yield Notice(
                "targets-without-layer",
                f"{family} states {', '.join(idle)}, which this model does not have",
                "check that the family is the right one, or choose with --targets",
            )
    yield from _harmful(layers)
    adapted = {layer.path for layer in layers}
    never = tuple(detection.architecture.targets.never)
    forgotten = [
        x.path for x in structure.adaptable() if x.path not in adapted and not below(x.path, never)
    ]
    if forgotten and detection.targets.scope == "all":
        yield Notice(
            "layers-forgotten",
            f"{len(forgotten)} linear layers of the decoder get no adapter: {_few(forgotten)}",
            "a suffix without a layer's number cannot tell them from layers that must not be "
            "adapted" if set(forgotten) <= structure.nameless()
            else "name them with --targets, and tell the plugin's author",
        )  # fmt: skip
    reached = {layer.layer for layer in layers} & set(structure.layers)
    if layers and len(reached) < _FEW_LAYERS * len(structure.layers):
        yield Notice(
            "few-layers",
            f"only {len(reached)} of {len(structure.layers)} decoder layers get an adapter",
            "use --targets all",
        )


def _wide_ranks(layers: list[LinearLayer], rank: int) -> Iterator[Notice]:
    """A product of two matrices has no more rank than its layer: more is memory for nothing."""
    full = {layer.path: min(layer.in_features, layer.out_features) for layer in layers}
    narrow = [path for path, dimension in full.items() if dimension < rank]
    if not narrow:
        return
    if len(narrow) == len(full):
        most = max(full.values())
        raise BadInput(
            f"rank {rank:,} is more than any adapted layer has (at most {most:,})",
            f"use --rank {most} or less; common ranks are 8 to 64",
        )
    yield Notice(
        "wide-rank",
        f"rank {rank:,} is more than {len(narrow)} of {len(full)} adapted layers have: "
        f"{_few(narrow)} ({full[narrow[0]]:,})",
        "a lower --rank trains the same there in less memory",
    )


def _harmful(layers: list[LinearLayer]) -> Iterator[Notice]:
    reasons: Mapping[str, str] = {
        **NEVER,
        "head": "the output head: its adapter is as large as the vocabulary",
        "outside": "no part of the text model",
    }
    for role, reason in reasons.items():
        paths = [layer.path for layer in layers if layer.role == role]
        if paths:
            yield Notice(
                f"adapts-{role}",
                f"{len(paths)} targets should carry no adapter, {_few(paths)}: {reason}",
                "leave them out with --targets, or lengthen their names in the plugin",
            )


def _few(paths: list[Any]) -> str:
    return ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
