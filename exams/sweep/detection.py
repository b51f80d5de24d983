"""Each type by its name, without torch; then its targets, judged by what its layers do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from exams.suite import Case, Suite
from exams.sweep import zoo
from exams.sweep.judge import Verdict, judge
from qlora_core import Architecture, Registry, Structure, analyse, detect
from qlora_core.models.coverage import adapted_layers
from qlora_core.models.names import hits
from qlora_core.models.parts import below
from qlora_core.registry.targets import resolve_targets

UNNAMED = {
    "blt": "the model that groups bytes runs without gradients, which the structure cannot see",
    "deepseek_v4": "half of its compressors take part only in texts of 128 tokens and more",
    "mllama": "a text skips the layers that look at an image; their MLPs bear the others' names",
    "zamba2": "each place calls one of the shared block's adapters, the rest are idle",
}
"""Type -> why its family leaves out, in ``never``, what the structure would adapt."""
IDLE = {
    "blt": ("local_encoder.cross_attn_layers.0.q_proj", "local_encoder.cross_attn_layers.0.k_proj"),
}
"""Type -> targets that cannot learn in the small model: here a query sees one key."""
_DETECT = """
import json, sys
from qlora_core import detect
found = {}
for name, config in json.load(sys.stdin).items():
    try:
        answer = detect(config)
        found[name] = [answer.architecture.name, answer.fit.name, answer.targets.target_modules]
    except Exception as error:
        found[name] = ["", "", f"{type(error).__name__}: {error}"]
heavy = sorted({"torch", "transformers", "peft", "bitsandbytes", "numpy"} & set(sys.modules))
print(json.dumps([found, heavy]))
"""


def names(count: int, seed: int) -> Iterator[Case]:
    """Every causal-LM type that transformers knows, and every variant, in one process."""
    configs: dict[str, zoo.Config] = {kind: {"model_type": kind} for kind in zoo.CAUSAL}
    configs |= zoo.text_models()
    asked = subprocess.run(
        [sys.executable, "-c", _DETECT], input=json.dumps(configs),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, heavy = json.loads(asked.stdout)
    yield Case("no heavy module is imported", not heavy, ", ".join(heavy))
    for name in zoo.chosen(configs, count, seed):
        family, fit, targets = found[name]
        yield Case(name, fit in ("MODEL_TYPE", "REFINED") and bool(targets), f"{family} {targets}")


def targets(count: int, seed: int) -> Iterator[Case]:
    """Stated targets against the run of each model, and against its structure."""
    configs = zoo.text_models()
    for name in zoo.chosen(configs, count, seed):
        config = configs[name]
        try:
            wrong = objections(config, detect(config).architecture)
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"[:300]]
        yield Case(name, not wrong, "; ".join(wrong))


def objections(config: zoo.Config, family: Architecture) -> list[str]:
    """What is wrong with the targets that ``family`` states for the model of ``config``."""
    kind = str(config["model_type"])
    model = zoo.build(config)
    structure = analyse(model)
    stated, inferred = reached(family, structure), reached(read_off(structure, kind), structure)
    apart = stated ^ inferred
    if kind in UNNAMED:
        apart -= barred(apart, family)
    found = judged(stated, family, judge(model, kind), kind)
    return [*found, *([f"the structure differs in {sorted(apart)[:3]}"] if apart else [])]


def judged(
    stated: set[str], family: Architecture, verdicts: dict[str, Verdict], kind: str
) -> list[str]:
    """The rules, by behaviour alone."""
    wanted = {path for path, verdict in verdicts.items() if verdict.wanted}
    idle = hits(stated, IDLE.get(kind, ()))
    on_purpose = barred(verdicts, family) if kind in UNNAMED else set()
    rules = {
        "is no linear layer": stated - set(verdicts),
        "is a head, a router or raw": {p for p in stated & set(verdicts) if verdicts[p].barred},
        "does not learn": {p for p in stated & set(verdicts) if not verdicts[p].learns} - idle,
        "learns and carries no adapter": wanted - stated - on_purpose,
        "is a decoder layer without adapter": {str(verdicts[p].layer) for p in wanted}
        - {str(verdicts[p].layer) for p in stated & set(verdicts)},
    }
    return [f"{sorted(paths)[:3]} {rule}" for rule, paths in rules.items() if paths]


def read_off(structure: Structure, kind: str) -> Architecture:
    """The family that the structure makes up by itself."""
    return Architecture(name=kind, targets=structure.targets(), layout=structure.layout())


def reached(family: Architecture, structure: Structure) -> set[str]:
    """Paths of the layers that carry an adapter when ``family`` is believed."""
    chosen = {x.path for x in adapted_layers(structure, resolve_targets(family))}
    return chosen - barred(chosen, family)


def barred(paths: Any, family: Architecture) -> set[str]:
    """Those of ``paths`` that ``family`` never adapts."""
    never = tuple(family.targets.never)
    return {path for path in paths if hits([path], never) or below(path, never)}


def described_by_nobody() -> Registry:
    """A registry without any family: the fallback alone."""
    everything = Registry.from_environment()
    return Registry.from_environment(block=[r.name for r in everything.records if r.provides])


NAMES = Suite(
    name="names",
    promise="each causal-LM type and variant is detected by its name, without torch",
    cases=names,
    full=1 + len(zoo.CAUSAL | zoo.text_models().keys()),
    quick=1 + len(zoo.CAUSAL | zoo.text_models().keys()),
)
TARGETS = Suite(
    name="targets",
    promise="stated targets are those that learn, and those of the structure",
    cases=targets,
    full=len(zoo.text_models()),
    quick=16,
)
