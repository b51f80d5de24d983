"""On the day a new architecture appears: families frozen at transformers 5.0, later types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from exams.suite import Case, Suite
from exams.sweep import nf4, zoo
from exams.sweep.detection import judged, reached
from exams.sweep.judge import judge
from qlora_core import Architecture, Registry, analyse, detect, hookimpl
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import PluginRecord

FIRST_SEEN = {
    "5.4": (
        "exaone_moe", "glm_moe_dsa", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
        "qwen3_5_moe_text", "qwen3_5_text", "youtu",
    ),
    "5.8": ("deepseek_v4", "gemma4", "gemma4_text", "hy_v3", "laguna"),
    "5.12": (
        "cohere2_moe", "deepseek_v32", "gemma4_unified", "gemma4_unified_text", "hrm_text",
        "hyperclovax", "mellum", "minimax_m3_vl_text",
    ),
    "5.16": (
        "axk1", "axk2", "cohere_compass_text", "granite_swa", "granitemoe_swa", "inkling_text",
        "mimo_v2_flash", "minicpm3", "qwen4_exp", "qwen4_exp_text", "zaya",
    ),
    "5.20": ("bailing_hybrid", "hy_v4", "kimi_linear", "kolibri1", "moss_transcribe_diarize"),
    "5.23": (
        "beam", "dots3_note", "dots3_note_text", "flint", "inkling2_text", "internlm3",
        "iquestcoder", "lfm3",
    ),
}  # fmt: skip
"""Causal-LM types that 5.0 did not know, by the first of these releases that lists them
(``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`` of 5.0, 5.4, 5.8, 5.12, 5.16, 5.20 and 5.23); two more,
Gemma 4's assistants, cannot be built."""


DATED = {
    f"{release} {kind}": kind
    for release, kinds in FIRST_SEEN.items()
    for kind in kinds
    if kind in zoo.text_models()
}


class Frozen:
    """A plugin with the families as they were, cut to the types that were known then."""

    def __init__(self, later: set[str]) -> None:
        self.later = later

    @hookimpl
    def qlora_architectures(self) -> list[Architecture]:
        """Families without a type of that time are gone, with their class names."""
        found = []
        for family in installed().architectures.values():
            known = tuple(kind for kind in family.model_types if kind not in self.later)
            if known:
                found.append(dataclasses.replace(family, model_types=known))
        return found


def frozen() -> Registry:
    """What transformers 5.0 knew, and the fallback."""
    names = [record.name for record in installed().records if record.provides]
    registry = Registry.from_environment(block=names)
    later = {kind for kinds in FIRST_SEEN.values() for kind in kinds}
    registry.add(Frozen(later), PluginRecord("frozen", "exam", "5.0"))
    return registry


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every later type: targets judged by behaviour, then loaded, trained and merged in NF4."""
    registry, configs = frozen(), zoo.text_models()
    for name in zoo.chosen(DATED, count, seed):
        config = configs[DATED[name]]
        family = detect(config, registry=registry).architecture
        kind, model = str(config["model_type"]), zoo.build(config)
        wrong = judged(reached(family, analyse(model)), family, judge(model, kind), kind)
        if wrong:
            yield Case(name, False, "; ".join(wrong))
            continue
        with TemporaryDirectory() as folder:
            yield nf4.examined(name, config, Path(folder), family)


SUITE = Suite(
    name="time travel",
    promise="a type newer than every family is read rightly, loaded, trained and merged",
    cases=cases,
    full=len(DATED),
    quick=6,
)
