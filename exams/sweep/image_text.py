"""Types that read images and text: no adapter in a tower, the text part covered."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from exams.suite import Case, Suite
from exams.sweep import zoo
from exams.sweep.detection import UNNAMED, barred, reached
from exams.sweep.judge import Verdict, judge
from qlora_core import analyse, detect

TOWER = re.compile(
    r"(vision|visual|image|video|audio|speech|vq|perceiver|resampler|connector|qformer|projector)"
    r"(?!.*language_model)", re.IGNORECASE,
)  # fmt: skip
NO_DECODER = {
    "florence2": "an encoder-decoder, whose decoder is given a single token",
    "pp_formulanet": "an encoder-decoder that reads formulas",
    "pi0": "a policy for robots: its text model serves as an encoder",
    "t5gemma2": "an encoder-decoder, with the tower inside the encoder",
    "vision-encoder-decoder": "an encoder-decoder; its tower bears the name of a part of its text",
}
"""Types that are no text generator with a tower -> why."""


def examined() -> dict[str, zoo.Config]:
    """The image-text types that generate text from a decoder."""
    configs = zoo.image_text_models().items()
    return {key: config for key, config in configs if config["model_type"] not in NO_DECODER}


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each image-text type, given text alone."""
    configs = examined()
    for name in zoo.chosen(configs, count, seed):
        try:
            yield _case(name, configs[name])
        except Exception as error:
            yield Case(name, False, f"{type(error).__name__}: {error}"[:300])


def _case(name: str, config: zoo.Config) -> Case:
    model = zoo.build(config)
    family = detect(config).architecture
    stated = reached(family, analyse(model))
    inside = sorted(path for path in stated if TOWER.search(path))
    if inside:
        return Case(name, False, f"{inside[:3]} lie in a tower")
    try:
        verdicts = judge(model, str(config["model_type"]))
    except Exception as error:
        return _by_name(name, model, stated, error)
    dead = sorted(path for path in stated if not verdicts[path].learns)
    text = {path for path, verdict in verdicts.items() if _of_text(verdict)}
    on_purpose = barred(text, family) if config["model_type"] in UNNAMED else set()
    forgotten = sorted(text - stated - on_purpose)
    wrong = [f"{dead[:3]} do not learn from text"] if dead else []
    wrong += [f"{forgotten[:3]} learn and carry no adapter"] if forgotten else []
    return Case(name, not wrong, "; ".join(wrong))


def _of_text(verdict: Verdict) -> bool:
    return verdict.wanted and not TOWER.search(verdict.path)


def _by_name(name: str, model: nn.Module, stated: set[str], error: Exception) -> Case:
    """A class that cannot read text alone: its layers are told apart by their names."""
    text = {path for path, module in model.named_modules()
            if type(module) is nn.Linear and re.search(r"\.\d+\.", path)
            and not TOWER.search(path) and "lm_head" not in path}  # fmt: skip
    share = len(stated) / max(len(text), 1)
    detail = f"not run on text alone ({type(error).__name__}); {len(stated)} of {len(text)} layers"
    return Case(name, bool(stated) and share > 0.5, detail)


SUITE = Suite(
    name="image and text",
    promise="no adapter in a tower; the layers that learn from text all carry one",
    cases=cases,
    full=len(examined()),
    quick=8,
)
