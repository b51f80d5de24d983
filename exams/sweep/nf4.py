"""Each type in NF4 on the CPU: loaded, trained, saved, reloaded, merged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
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
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.adapters import attach, check_gradients
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.merge import merge
from qlora_core.training.losses import summed_loss

EXACT = 1e-3
"""How far logits that should be equal may be apart, relative to their spread (float32)."""
STEPS = 10


class Broken(Exception):
    """A promise that does not hold; the message says which."""


def cases(count: int, seed: int) -> Iterator[Case]:
    """Every causal-LM type and variant, or a share of them."""
    configs = zoo.text_models()
    for name in zoo.chosen(configs, count, seed):
        with TemporaryDirectory() as folder:
            yield examined(name, configs[name], Path(folder))


def examined(name: str, config: zoo.Config, root: Path) -> Case:
    """One type through all promises; the first that is broken fails it."""
    figures: dict[str, float] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(config, root, figures)
    except Exception as error:
        return Case(name, False, f"{type(error).__name__}: {str(error)[:300]}", figures)
    return Case(name, True, figures=figures)


def _examine(config: zoo.Config, root: Path, figures: dict[str, float]) -> None:
    base = root / "base"
    zoo.save(config, base)
    loaded = _load(base)
    loaded.quantization.require_complete()
    words = zoo.text(loaded.model)
    figures["nf4 against dequantized"] = _same_as_dequantized(loaded, base, words)
    model = attach(loaded.model, architecture=loaded.detection.architecture, rank=4)
    figures["loss after ten steps"] = _trained(model, words)
    _reloaded_and_merged(model, loaded, root, words, figures)


def _load(folder: Path, quantize: str | None = "nf4") -> LoadedModel:
    return load_model(folder, quantize=quantize, compute_dtype=torch.float32, device="cpu")


def _same_as_dequantized(loaded: LoadedModel, base: Path, words: torch.Tensor) -> float:
    """Compare with the 16-bit class on the very values that the 4-bit weights stand for."""
    plain = _load(base, None).model
    for path, value in dequantized(loaded.model):
        target = plain.get_parameter(path)
        turned = isinstance(plain.get_submodule(path.rpartition(".")[0]), Conv1D)
        target.data.copy_((value.T if turned else value).reshape(target.shape))
    worst = 0.0
    for training in (False, True, False):
        apart = distance(logits(plain.train(training), words),
                         logits(loaded.model.train(training), words))  # fmt: skip
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


def _reloaded_and_merged(
    model: Any, loaded: LoadedModel, root: Path, words: torch.Tensor, figures: dict[str, float]
) -> None:
    trained = logits(model.eval(), words)
    adapter = root / "run" / "adapter"
    model.save_pretrained(adapter)
    record = {"hardware": {"compute_dtype": "torch.float32"}, "settings": {"quantize": "nf4"}}
    (adapter.parent / "run.json").write_text(json.dumps(record))
    again = peft.PeftModel.from_pretrained(_load(root / "base").model, str(adapter)).eval()
    figures["reloaded"] = distance(trained, logits(again, words))
    if figures["reloaded"] > EXACT:
        raise Broken(f"reloaded by plain PEFT, logits are {figures['reloaded']:.2%} apart")
    merge(adapter, root / "merged", base=loaded.folder, check=False, device="cpu")
    merged = _load(root / "merged", None).model.eval()
    figures["merged"] = distance(trained, logits(merged, words))
    if figures["merged"] > EXACT:
        raise Broken(f"merged, logits are {figures['merged']:.2%} apart")


SUITE = Suite(
    name="nf4",
    promise="each type is 4-bit, computes what its dequantized weights do, learns and merges",
    cases=cases,
    full=189,
    quick=12,
)
