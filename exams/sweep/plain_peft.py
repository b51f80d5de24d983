"""What detection prints, given to plain PEFT: does it adapt what was meant?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from exams.suite import Case, Suite
from exams.sweep import zoo
from qlora_core.models.adapters import attach
from qlora_core.models.skeleton import build_skeleton
from qlora_core.models.structure import analyse
from qlora_core.registry.detect import detect


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every causal-LM type and variant on a 16-bit base, or a share of them."""
    configs = zoo.text_models()
    for name in zoo.chosen(configs, count, seed):
        try:
            wrong = differences(configs[name])
            if analyse(build_skeleton(configs[name])).experts:
                wrong += differences(configs[name], "all,experts")
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"[:300]]
        yield Case(name, not wrong, "; ".join(wrong))


def differences(config: zoo.Config, scope: str = "all") -> list[str]:
    """What plain PEFT adapts and ``attach`` does not, and the other way round."""
    found = detect(config, targets=scope)
    printed = as_printed(found.to_dict()["targets"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = adapted(peft.get_peft_model(build_skeleton(config, device="cpu"), printed))
        whole = attach(
            build_skeleton(config, device="cpu"),
            architecture=found.architecture,
            targets=scope,
            rank=4,
        )
    meant = adapted(whole)
    return [
        f"{scope}: {what} {sorted(paths)[:3]}"
        for what, paths in (("plain PEFT also adapts", plain - meant),
                            ("plain PEFT does not adapt", meant - plain))
        if paths
    ]  # fmt: skip


def as_printed(targets: dict[str, Any]) -> peft.LoraConfig:
    """The three fields of ``detect --json``, as anybody would copy them."""
    names = ("target_modules", "target_parameters", "exclude_modules")
    return peft.LoraConfig(
        r=4, task_type="CAUSAL_LM", **{name: targets[name] or None for name in names}
    )


def adapted(model: nn.Module) -> set[str]:
    """Paths of the weights that carry an adapter."""
    found = set()
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            own = path.removeprefix("base_model.model.").replace(".base_layer", "")
            found.add(f"{own}.{getattr(layer, 'parameter_name', 'weight')}")
    return found


SUITE = Suite(
    name="plain PEFT",
    promise="plain PEFT adapts, of what detection prints, the layers that were meant",
    cases=cases,
    full=len(zoo.text_models()),
    quick=24,
)
