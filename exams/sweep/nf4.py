"""Each type in NF4 on the CPU: loaded, trained, saved, reloaded, merged."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from exams.suite import Case, Suite
from exams.sweep import zoo
from exams.sweep.share import LEAST, full_size, listed
from qlora_core import Architecture, analyse
from qlora_core.errors import BadInput
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.adapter_checks import check_gradients
from qlora_core.models.adapters import attach
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.merge import merge
from qlora_core.models.quantization import float32_names, is_within
from qlora_core.models.trained import put_on, read_adapter
from qlora_core.training.losses import summed_loss

EXACT = 1e-3
"""How far logits that should be equal may be apart, relative to their spread (float32)."""
STEPS = 10
RENAMED_BY_PEFT = {
    "inkling2_text": "PEFT takes names of short convolutions for those of older checkpoints, and "
    "no name leads it to their tensors: it drops their adapters with a warning, we load all",
}
"""Type -> why plain PEFT 0.21 loads less than was saved; attaching the adapter says so."""
ONLY_MERGED_BY_PEFT = {
    "dbrx": "PEFT's wrapper hides a matrix of experts from the module that reads it",
}
"""Type -> why plain PEFT loads a saved adapter and cannot compute with it; it can merge it."""
SHARED = dict.fromkeys(
    ("zamba", "zamba2"),
    "one block stands in several places with an adapter at each: merging is refused",
)
"""Type -> why an adapter on all its layers cannot be merged."""


class Broken(Exception):
    """A promise that does not hold; the message says which."""


@dataclass
class Findings:
    """What one type showed, and which promises were not asked of it, with the reasons."""

    figures: dict[str, float] = field(default_factory=dict)
    exceptions: list[str] = field(default_factory=list)


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every causal-LM type and variant, or a share of them."""
    configs = zoo.text_models()
    for name in zoo.chosen(configs, count, seed):
        with TemporaryDirectory() as folder:
            yield examined(name, configs[name], Path(folder))


def examined(
    name: str,
    config: zoo.Config,
    root: Path,
    family: Architecture | None = None,
    targets: str = "all",
) -> Case:
    """One type through all promises; the first that is broken fails it.

    ``family`` takes the place of the one that is detected.
    """
    found = Findings()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(config, root, found, family, targets)
    except Exception as error:
        return Case(name, False, f"{type(error).__name__}: {str(error)[:300]}", found.figures)
    return Case(name, True, figures=found.figures, exceptions=tuple(found.exceptions))


def _examine(
    config: zoo.Config,
    root: Path,
    found: Findings,
    family: Architecture | None,
    targets: str,
) -> None:
    base, figures = root / "base", found.figures
    built = zoo.save(config, base)
    loaded = _load(base, family=family)
    loaded.quantization.require_complete()
    packed = [path for path, _ in dequantized(loaded.model)]
    figures["adaptable layers in 16 bits"] = _each_in_4_bits(built, packed)
    figures["share in 16 bits"] = _enough(config, packed)
    words = zoo.text(loaded.model)
    plain = _dequantized_twin(loaded.model, base)
    figures["nf4 against dequantized"] = _same(plain, loaded.model, words)
    architecture = loaded.detection.architecture
    model = attach(loaded.model, architecture=architecture, rank=4, targets=targets)
    figures["loss after ten steps"] = _trained(model, words)
    adapter = _saved(model, root / "run" / "adapter")
    trained = logits(model.eval(), words)
    figures["reloaded"] = _reloaded(adapter, loaded, words, trained)
    _reload_by_peft(adapter, loaded.detection.model_type, plain, words, trained, found)
    _merge(adapter, loaded, root / "merged", words, trained, found)


def _load(
    folder: Path, quantize: str | None = "nf4", family: Architecture | None = None
) -> LoadedModel:
    return load_model(
        folder, quantize=quantize, compute_dtype=torch.float32, device="cpu", architecture=family
    )


def _each_in_4_bits(built: Any, packed: list[str]) -> int:
    """How many layers that can carry an adapter are wide because their class wants it so."""
    wide = {f"{layer.path}.weight" for layer in analyse(built).adaptable()} - set(packed)
    asked = {path for path in wide if is_within(path, float32_names(built))}
    if unasked := sorted(wide - asked):
        raise Broken(f"{len(unasked)} layers that can carry an adapter are wide: {unasked[:3]}")
    return len(asked)


def _enough(config: zoo.Config, packed: list[str]) -> float:
    """Not asked of variants, which may lack layers that the type's default config has."""
    if config in [variant for key, variant in zoo.text_models().items() if "@" in key]:
        return 0.0
    share, rest = full_size(config, packed)
    if share < LEAST:
        raise Broken(f"{share:.1%} of the decoder's matrices are 4-bit; not: {listed(rest)}")
    return 1 - share


def _dequantized_twin(model: nn.Module, base: Path) -> Any:
    """The 16-bit class on the very values that the 4-bit weights stand for."""
    plain = _load(base, None).model
    for path, value in dequantized(model):
        target = plain.get_parameter(path)
        turned = isinstance(plain.get_submodule(path.rpartition(".")[0]), Conv1D)
        target.data.copy_((value.T if turned else value).reshape(target.shape))
    return plain


def _same(plain: Any, model: Any, words: torch.Tensor) -> float:
    """Compared in evaluation, in training, and in evaluation once more."""
    worst = 0.0
    for training in (False, True, False):
        apart = distance(logits(plain.train(training), words),
                         logits(model.train(training), words))  # fmt: skip
        if apart > EXACT:
            mode = "training" if training else "evaluation"
            raise Broken(f"logits {apart:.2%} from the dequantized model's in {mode} mode")
        worst = max(worst, apart)
    return worst


def dequantized(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name in the 16-bit model -> value, for every 4-bit weight."""
    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            yield f"{path}.weight", dequantize_4bit(module.weight.data, module.weight.quant_state)
        if isinstance(module, ExpertStack):
            yield path, module.whole().frozen()
        if isinstance(module, ParametrizationList):
            yield path.replace(".parametrizations", ""), module().detach()


@torch.no_grad()
def logits(model: Any, words: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, vocabulary) in float32; equal seeds give equal dropout."""
    torch.manual_seed(0)
    ask = {"input_ids": words, "attention_mask": torch.ones_like(words), "use_cache": False}
    result: torch.Tensor = model(**ask).logits.float()
    return result


def distance(own: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the spread of ``own``."""
    return float((own - other).abs().max() / own.std())


def _trained(model: Any, words: torch.Tensor) -> float:
    """Ten steps on one batch: a gradient in every adapter, then a lower loss."""
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-3)
    model.train()
    losses = []
    for step in range(STEPS + 1):
        torch.manual_seed(step)
        loss: Any = summed_loss(model, batch)
        losses.append(float(loss.detach()) / words.numel())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_gradients(model)
        optimizer.step()
    if not losses[-1] < losses[0]:
        raise Broken(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} in ten steps")
    return losses[-1] / losses[0]


def _saved(model: Any, adapter: Path) -> Path:
    model.save_pretrained(adapter)
    record = {"hardware": {"compute_dtype": "torch.float32"}, "settings": {"quantize": "nf4"}}
    (adapter.parent / "run.json").write_text(json.dumps(record))
    return adapter


def _reloaded(
    adapter: Path, loaded: LoadedModel, words: torch.Tensor, trained: torch.Tensor
) -> float:
    """By ourselves on a 4-bit base loaded afresh."""
    base = _load(loaded.folder, family=loaded.detection.architecture).model
    again = put_on(base, read_adapter(adapter, base=loaded.folder))
    apart = distance(trained, logits(again, words))
    if apart > EXACT:
        raise Broken(f"reloaded, logits are {apart:.2%} apart")
    return apart


def _reload_by_peft(
    adapter: Path, kind: str, plain: Any, words: torch.Tensor, trained: torch.Tensor,
    found: Findings,
) -> None:  # fmt: skip
    """By plain PEFT on the dequantized base."""
    model: Any = peft.PeftModel.from_pretrained(plain, str(adapter)).eval()
    if kind in ONLY_MERGED_BY_PEFT and model.peft_config["default"].target_parameters:
        found.exceptions.append(f"computing unmerged in plain PEFT: {ONLY_MERGED_BY_PEFT[kind]}")
        model = model.merge_and_unload()
    apart = distance(trained, logits(model, words))
    if kind not in RENAMED_BY_PEFT:
        found.figures["reloaded by plain PEFT"] = apart
    else:
        found.exceptions.append(f"reloading in plain PEFT: {RENAMED_BY_PEFT[kind]}")
    if (apart > EXACT) != (kind in RENAMED_BY_PEFT):
        raise Broken(f"reloaded by plain PEFT, logits are {apart:.2%} apart")


def _merge(
    adapter: Path, loaded: LoadedModel, output: Path, words: torch.Tensor, trained: torch.Tensor,
    found: Findings,
) -> None:  # fmt: skip
    family, kind = loaded.detection.architecture, loaded.detection.model_type
    try:
        merge(adapter, output, base=loaded.folder, architecture=family, check=False, device="cpu")
    except BadInput as refusal:
        if kind not in SHARED or "shared" not in refusal.problem:
            raise
        found.exceptions.append(f"merging: {SHARED[kind]}")
        return
    if kind in SHARED and _has_shared_layers(loaded.model):
        raise Broken("merged, though one weight cannot hold the adapters of several places")
    merged = _load(output, None).model.eval()
    apart = distance(trained, logits(merged, words))
    if apart > EXACT:
        raise Broken(f"merged, logits are {apart:.2%} apart")
    found.figures["merged"] = apart


def _has_shared_layers(model: nn.Module) -> bool:
    """Whether a weight below a list of layers has several paths."""
    seen = Counter(
        id(parameter)
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if ".layers." in path and parameter.ndim >= 2
    )
    return max(seen.values(), default=0) > 1


SUITE = Suite(
    name="nf4",
    promise="each type is 4-bit, computes what its dequantized weights do, learns and merges",
    cases=cases,
    full=len(zoo.text_models()),
    quick=12,
)
