"""Mixtures of experts: their stacks in 4 bits, adapters on them, and the memory both take."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exams.suite import Case, Suite
from exams.sweep import nf4, zoo
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models.adapters import attach
from qlora_core.models.expert_adapters import expert_layers
from qlora_core.models.loader import load_model
from qlora_core.models.memory import plan_memory
from qlora_core.models.memory_plan import FOUR_BIT, REST
from qlora_core.models.skeleton import build_skeleton
from qlora_core.models.structure import analyse

LEAST = 0.98
"""The share of an expert stack's weights that must be 4-bit."""
SLACK = 1.1
"""Loading may take the size of the 4-bit model times this, plus its largest tensor in 16 bits."""
MIXTRAL_8X7B = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
}  # fmt: skip
SCALED_DOWN = {
    **MIXTRAL_8X7B, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 3,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 2048,
}  # fmt: skip
"""220 million weights, 440 MB in bfloat16."""
_LOADED = """\
import json, sys, threading, time, torch
from qlora_core.models.loader import load_model
def anonymous():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))
peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)
before, watcher = anonymous(), threading.Thread(target=watch)
watcher.start()
loaded = load_model(sys.argv[1], device="cpu", compute_dtype=torch.bfloat16)
running = False
watcher.join()
size = loaded.quantization.total.bytes
print(json.dumps({"peak": peak - before, "after": anonymous() - before, "size": size}))
"""


def types() -> dict[str, zoo.Config]:
    """The types with expert stacks, and those of their variants that concern these."""
    return {
        name: config
        for name, config in zoo.text_models().items()
        if name not in zoo.VARIANTS and analyse(build_skeleton(config)).experts
    }


def cases(count: int, seed: int) -> Iterator[Case]:
    """The load of a scaled-down Mixtral, the plan of the real one, and a share of the types."""
    yield _guarded("mixtral scaled down, loaded", loading)
    yield _guarded("mixtral 8x7b, planned", planned)
    configs = types()
    for name in zoo.chosen(configs, count - 2, seed):
        with TemporaryDirectory() as folder:
            yield examined(name, configs[name], Path(folder))


def examined(name: str, config: zoo.Config, root: Path) -> Case:
    """The promises of the experts, then those of every 4-bit model with its experts adapted."""
    first = _guarded(name, lambda: _stacks(config, root / "stacks"))
    gc.collect()
    if not first.passed:
        return first
    second = nf4.examined(name, config, root, targets="all,experts")
    figures = {**first.figures, **second.figures}
    return Case(name, second.passed, second.detail, figures, second.exceptions)


def _guarded(name: str, ask: Any) -> Case:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Case(name, True, figures=ask())
    except Exception as error:
        return Case(name, False, f"{type(error).__name__}: {str(error)[:300]}")


def _stacks(config: zoo.Config, base: Path) -> dict[str, float]:
    """In 4 bits; one batch; every expert that saw a token has a gradient."""
    plain = zoo.save(config, base)
    stacks = {stack.path: stack.parameters for stack in analyse(plain).experts}
    loaded = load_model(base, device="cpu", compute_dtype=torch.float32)
    packed = {path for path, part in loaded.model.named_modules() if isinstance(part, ExpertStack)}
    missing = sum(size for path, size in stacks.items() if path not in packed)
    share = 1 - missing / sum(stacks.values())
    if share < LEAST:
        raise nf4.Broken(f"{share:.1%} of the experts' weights are 4-bit")
    family = loaded.detection.architecture
    model = attach(loaded.model, architecture=family, targets="all,experts", rank=4).train()
    words = zoo.text(model)
    ask = {"input_ids": words, "attention_mask": torch.ones_like(words), "use_cache": False}
    model(**ask).logits.float().square().mean().backward()  # of every token, the last ones too
    dead, unused, experts = [], 0, 0
    for path, layer in expert_layers(model):
        gradients = layer.gradients()
        used = torch.tensor([number in layer.stack.used for number in range(layer.stack.experts)])
        learned = gradients.isfinite() & (gradients > 0)
        dead += [f"{path}[{number}]" for number in (used & ~learned).nonzero().flatten()]
        experts, unused = experts + len(used), unused + int((~used).sum())
    if not experts or dead:
        raise nf4.Broken(f"{len(dead)} of {experts} experts got tokens and no gradient: {dead[:3]}")
    return {"expert weights in 16 bits": 1 - share, "experts without tokens": unused}


def loading() -> dict[str, float]:
    """A fresh process that loads 440 MB: its anonymous memory (mapped files do not count)."""
    with TemporaryDirectory() as folder:
        model = build_skeleton(SCALED_DOWN, device="cpu").to(torch.bfloat16)
        largest = max(2 * parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder, max_shard_size="100MB")  # type: ignore[operator]
        del model
        gc.collect()
        run = [sys.executable, "-c", _LOADED, folder]
        found = json.loads(subprocess.check_output(run, text=True).splitlines()[-1])
    allowed = SLACK * found["size"] + largest
    if found["peak"] > allowed:
        raise nf4.Broken(f"{found['peak'] / 2**20:.0f} MiB, and {allowed / 2**20:.0f} are allowed")
    return {f"loading, {key} in MiB": round(value / 2**20, 1) for key, value in found.items()}


def planned() -> dict[str, float]:
    """On the meta device: all but embeddings, head, norms and routers is 4-bit."""
    plan = plan_memory(MIXTRAL_8X7B)
    stacks = sum(stack.parameters for stack in analyse(build_skeleton(MIXTRAL_8X7B)).experts)
    four_bit, rest = plan.terms[FOUR_BIT], plan.terms[REST]
    as_transformers_loads_it = four_bit + rest + stacks * (2 - 4.127 / 8)
    if (four_bit + rest) / 2**30 > 23.5:
        raise nf4.Broken(f"{(four_bit + rest) / 2**30:.1f} GiB")
    return {
        "mixtral 8x7b in GB": round((four_bit + rest) / 1e9, 2),
        "mixtral 8x7b in GB, experts in 16 bits": round(as_transformers_loads_it / 1e9, 2),
    }


SUITE = Suite(
    name="experts",
    promise="experts are 4-bit and load within bounds; adapters on them learn, reload and merge",
    cases=cases,
    full=66,
    quick=6,
)
