"""With its family removed, each type is read off its structure: the same targets must come out."""

from __future__ import annotations

from collections.abc import Iterator

from exams.suite import Case, Suite
from exams.sweep import zoo
from exams.sweep.detection import UNNAMED, barred, described_by_nobody, reached, read_off
from exams.sweep.share import large
from qlora_core import Architecture, Structure, analyse, build_skeleton, detect
from qlora_core.errors import BadInput
from qlora_core.models.names import hits
from qlora_core.registry.detection import Fit

HOOKS = {
    "rwkv": "switches off a rescaling that would quantize its layers anew in evaluation mode",
    "reformer": "asks its embeddings for a gradient, without which its blocks pass none on",
}
"""Type -> what its family does by a hook, which no structure shows."""


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every causal-LM type and variant, on the meta device."""
    nobody = described_by_nobody()
    configs = zoo.text_models()
    for name in zoo.chosen(configs, count, seed):
        stated = detect(configs[name])
        read = detect(configs[name], registry=nobody)
        structure = analyse(build_skeleton(configs[name]))
        wrong = differences(stated.architecture, read.architecture, structure)
        if read.fit is not Fit.FALLBACK:
            wrong.append(f"was claimed by {read.architecture.name}")
        yield Case(name, not wrong, "; ".join(wrong))


def at_full_size(count: int, seed: int) -> Iterator[Case]:
    """Every type as its default config describes it, which small configs may differ from."""
    configs = {name: config for name, config in zoo.text_models().items() if "@" not in name}
    for name in zoo.chosen(configs, count, seed):
        model, kind = large(configs[name]), str(configs[name]["model_type"])
        family = detect({**model.config.to_dict(), "model_type": kind}).architecture
        structure = analyse(model)
        try:
            wrong = differences(family, read_off(structure, kind), structure)
        except BadInput as error:
            wrong = [error.problem]
        yield Case(name, not wrong, "; ".join(wrong))


def differences(stated: Architecture, read: Architecture, structure: Structure) -> list[str]:
    """Where plugin and fallback part, beyond what ``UNNAMED`` explains."""
    ours, theirs = reached(stated, structure), reached(read, structure)
    apart = ours ^ theirs
    if set(stated.model_types) & set(UNNAMED):
        apart -= barred(apart, stated)
    stacks = {stack.path for stack in structure.experts}
    experts = hits(stacks, stated.targets.experts) ^ hits(stacks, read.targets.experts)
    linears = [x.path for x in structure.linears]
    kept = hits(linears, read.targets.keep_unquantized)
    risky = kept - hits(linears, stated.targets.keep_unquantized)
    found = {"targets": apart, "experts": experts, "4-bit layers that fail": risky}
    wrong = [f"{what} differ in {sorted(paths)[:3]}" for what, paths in found.items() if paths]
    if stated.prepare_model is not None and not set(stated.model_types) & set(HOOKS):
        wrong.append("the family prepares its model, and nobody says why")
    return wrong


FULL_SIZE = Suite(
    name="full size",
    promise="at the size of a type's default config, family and structure agree",
    cases=at_full_size,
    full=sum("@" not in name for name in zoo.text_models()),
    quick=8,
)
SUITE = Suite(
    name="fallback",
    promise="with its family removed, each type's structure gives the same targets",
    cases=cases,
    full=len(zoo.text_models()),
    quick=40,
)
