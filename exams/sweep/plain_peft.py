"""What detection prints, given to plain PEFT: does it adapt what was meant?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from torch import nn

from exams.suite import Case, Suite
from exams.sweep import image_text, zoo
from qlora_core.models.adapters import attach
from qlora_core.models.skeleton import build_skeleton
from qlora_core.models.structure import analyse
from qlora_core.registry.detect import detect

ALSO = "plain PEFT also adapts"


def examined() -> dict[str, zoo.Config]:
    """The types that generate text, from text alone or from images too."""
    return zoo.text_models() | image_text.examined()


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every type that generates text, and every variant, on a 16-bit base, or a share of them."""
    configs = examined()
    for name in zoo.chosen(configs, count, seed):
        try:
            yield judged(name, configs[name])
        except Exception as error:
            yield Case(name, False, f"{type(error).__name__}: {error}"[:300])


def judged(name: str, config: zoo.Config) -> Case:
    """Without and, where there are any, with the experts. What detection warns of is excepted."""
    wrong = differences(config)
    if analyse(build_skeleton(config)).experts:
        wrong += differences(config, "all,experts")
    notices = [n for n in detect(config).warnings if n.code == "names-taken-for-experts"]
    if wrong and notices and not any(ALSO in difference for difference in wrong):
        return Case(name, True, exceptions=(notices[0].message,))
    return Case(name, not wrong, "; ".join(wrong))


def differences(config: zoo.Config, scope: str = "all") -> list[str]:
    """What plain PEFT adapts and ``attach`` does not, and the other way round."""
    found = detect(config, targets=scope)
    printed = as_printed(found.to_dict()["targets"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = adapted(peft.get_peft_model(build_skeleton(config, device="cpu"), printed))
        family, base = found.architecture, build_skeleton(config, device="cpu")
        meant = adapted(attach(base, architecture=family, targets=scope, rank=4))
    apart = {ALSO: plain - meant, "plain PEFT does not adapt": meant - plain}
    return [f"{scope}: {what} {sorted(paths)[:3]}" for what, paths in apart.items() if paths]


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
    full=len(examined()),
    quick=24,
)
