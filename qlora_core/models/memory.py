"""How much memory a run takes, term by term, said before and explained after.

The closed form of a QLoRA step: everything that stays, plus the larger of two moments, the
backward pass of one layer and that of the head with its loss. Constants were fitted to traces
of real steps; docs/memory.md states how far off they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlora_core.errors import QloraError, TrainingStopped
from qlora_core.models.quantization import (
    binary_size,
    convertible,
    family_skips,
    is_within,
    library_skips,
    parameters_once,
)
from qlora_core.models.selection import ends_with, select_layers
from qlora_core.models.skeleton import build_skeleton
from qlora_core.models.structure import Structure, analyse
from qlora_core.registry.detect import detect
from qlora_core.registry.detection import Detection

FOUR_BIT = "base weights in 4 bits"
REST = "base weights in 16 bits"
ADAPTERS = "adapters"
OPTIMIZER = "gradients and optimizer"
ACTIVATIONS = "activations between layers"
LAYER = "work of one layer"
HEAD = "head and loss"
CONTEXT = "buffers and context"

BYTES_PER_4_BIT_WEIGHT = {True: 0.5 + (8 + 32 / 256) / 8 / 64, False: 0.5 + 4 / 64}
"""With and without double quantization: 4.127 and 4.5 bits (QLoRA paper, section 3)."""
OPTIMIZER_BYTES = {"adamw": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Per trainable parameter."""
SAVED_PER_WIDTH, SAVED_PER_OUTPUT = 12.0, 3.75
"""Bytes that one layer saves for its backward pass per token: per unit of the hidden size (norms)
and per output of a linear layer. Fitted to saved tensors in bfloat16 under autocast."""
BACKWARD_PER_OUTPUT = 10.0
"""Bytes of temporaries per token and output of the layer's widest linear layer."""
LOSS_PER_LOGIT = 14.0
"""Logits and their gradient in 16 bits, float32 logits, log-probabilities and their gradient."""
CONTEXT_BYTES = 2**29
"""CUDA's context and workspaces; on the CPU the process itself with all its libraries."""
OVERHEAD = {"cpu": 0.6, "cuda": 0.04}
"""What allocators waste: the C library's on small blocks, torch's on everything."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Planned bytes by term. ``total`` counts the larger of the two moments, not both."""

    terms: Mapping[str, int]
    gradient_checkpointing: bool
    tokens: int

    @property
    def total(self) -> int:
        """Planned peak in bytes."""
        smaller = min(self.terms[LAYER], self.terms[HEAD])
        return sum(self.terms.values()) - smaller

    def table(self) -> str:
        """The terms, one a line, in binary units. What is in brackets does not add up."""
        smaller = LAYER if self.terms[LAYER] < self.terms[HEAD] else HEAD
        rows = []
        for name, size in self.terms.items():
            shown = f"({binary_size(size)})" if name == smaller else binary_size(size)
            rows.append(f"  {name:<28}{shown:>12}")
        note = f"  ({smaller}: at another moment than {LAYER if smaller == HEAD else HEAD})"
        return "\n".join([*rows, f"  {'peak':<28}{binary_size(self.total):>12}", note])

    def to_dict(self) -> dict[str, Any]:
        """As ``run.json`` records it."""
        return {"planned": dict(self.terms), "planned_total_bytes": self.total}


def plan_memory(
    source: Detection | Mapping[str, Any] | nn.Module,
    *,
    rank: int = 16,
    tokens: int = 2048,
    length: int | None = None,
    learned: float = 1.0,
    targets: str = "all",
    optimizer: str = "paged_adamw_32bit",
    compute_dtype: torch.dtype = torch.bfloat16,
    quantize: str | None = "nf4",
    double_quantization: bool = True,
    gradient_checkpointing: bool = True,
    device: str = "cuda",
) -> MemoryPlan:
    """The memory that one training step takes, from the config alone.

    ``tokens`` is batch size times length of one micro-batch, ``length`` that of its longest
    sample (it counts for models without fused attention), ``learned`` the share of tokens that
    the loss is computed on. Builds the model's skeleton: seconds, and no memory at any size.
    """
    found = source if isinstance(source, Detection) else detect(source)
    skeleton = build_skeleton(found.config)
    structure = analyse(skeleton)
    wide = 4 if compute_dtype == torch.float32 else 2
    packed, rest = _weights(skeleton, found, quantized=quantize is not None)
    adapted = _adapter_parameters(skeleton, found, targets, rank)
    shape = _Shape.of(structure, skeleton, length or tokens)
    saved = shape.saved(tokens) * wide / 2
    layers = shape.layers
    kept = layers * tokens * shape.hidden * wide if gradient_checkpointing else layers * saved
    work = shape.backward(tokens) * wide / 2 + (saved if gradient_checkpointing else 0)
    loss = tokens * shape.vocabulary * (2 + (LOSS_PER_LOGIT - 2) * learned) * wide / 2
    terms = {
        FOUR_BIT: packed * BYTES_PER_4_BIT_WEIGHT[double_quantization],
        REST: rest * wide,
        ADAPTERS: adapted * 4,
        OPTIMIZER: adapted * (4 + OPTIMIZER_BYTES[optimizer]),
        ACTIVATIONS: kept,
        LAYER: work,
        HEAD: loss,
    }
    wasted = (kept + work) if device == "cpu" else sum(terms.values()) - min(work, loss)
    share = OVERHEAD["cpu" if device == "cpu" else "cuda"]
    terms[CONTEXT] = CONTEXT_BYTES + share * wasted
    return MemoryPlan(
        terms={name: round(size) for name, size in terms.items()},
        gradient_checkpointing=gradient_checkpointing,
        tokens=tokens,
    )


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The dimensions that activations depend on. Widths are those of the heaviest layer."""

    layers: int
    hidden: int
    vocabulary: int
    outputs: int
    """Sum of the outputs of one layer's linear maps, active experts included."""
    widest: int
    largest: int
    """Weights of the largest matrix that is dequantized at once: of a layer or of one expert."""
    scores: int
    """Attention scores per token where they are written out: heads times length; else 0."""

    @classmethod
    def of(cls, structure: Structure, skeleton: Any, length: int) -> _Shape:
        config = skeleton.config.get_text_config()
        active = int(getattr(config, "num_experts_per_tok", None) or 1)
        outputs = dict.fromkeys(structure.layers, 0)
        inner = [linear for linear in structure.linears if linear.layer]
        for linear in inner:
            outputs[str(linear.layer)] += linear.out_features
        for stack in structure.experts:
            outputs[stack.layer] += active * max(stack.shape[1:])
        experts = (stack.parameters // max(stack.shape[0], 1) for stack in structure.experts)
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        return cls(
            layers=len(structure.layers),
            hidden=int(skeleton.get_input_embeddings().weight.shape[1]),
            vocabulary=int(skeleton.get_input_embeddings().weight.shape[0]),
            outputs=max(outputs.values(), default=0),
            widest=max((linear.out_features for linear in inner), default=0),
            largest=max((*(linear.parameters for linear in inner), *experts), default=0),
            scores=0 if getattr(skeleton, "_supports_sdpa", True) else heads * length,
        )

    def saved(self, tokens: int) -> float:
        """Bytes that one layer keeps for its backward pass, in a 16-bit compute dtype."""
        per_token = SAVED_PER_WIDTH * self.hidden + SAVED_PER_OUTPUT * self.outputs
        return tokens * (per_token + 6 * self.scores)

    def backward(self, tokens: int) -> float:
        """Bytes of one layer's temporaries, its largest dequantized matrix among them."""
        return tokens * BACKWARD_PER_OUTPUT * self.widest + self.largest * (2 + 8 / 64)


def _weights(skeleton: nn.Module, found: Detection, *, quantized: bool) -> tuple[int, int]:
    """Weights that become 4-bit, and all others; tied ones count once."""
    kept = [*family_skips(found.architecture), *library_skips(skeleton)]
    experts = found.architecture.targets.experts
    packed = rest = 0
    for path, module, name, parameter in parameters_once(skeleton):
        linear = name == "weight" and convertible(module) and not is_within(path, kept)
        if quantized and (linear or ends_with(f"{path}.{name}", experts)):
            packed += parameter.numel()
        else:
            rest += parameter.numel()
    return packed, rest


def _adapter_parameters(skeleton: nn.Module, found: Detection, targets: str, rank: int) -> int:
    chosen = select_layers(skeleton, found.architecture, targets)
    layers = (skeleton.get_submodule(path) for path in chosen.modules)
    stacks = (skeleton.get_parameter(path).shape for path in chosen.parameters)
    return rank * (
        sum(sum(m.weight.shape) for m in layers if isinstance(m.weight, torch.Tensor))
        + sum(shape[0] * sum(shape[1:]) for shape in stacks)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def explain_out_of_memory(error: BaseException, plan: MemoryPlan) -> QloraError:
    """The plan's table, the term that most likely grew too large, and what to change next."""
    lines = str(error).strip().splitlines()
    changeable = (OPTIMIZER, ACTIVATIONS, LAYER, HEAD)
    term = max(changeable, key=lambda name: plan.terms[name])
    weights = plan.terms[FOUR_BIT] + plan.terms[REST]
    if weights > 2 * plan.terms[term]:
        term, remedy = "base weights", _WEIGHTS_REMEDY
    elif term == ACTIVATIONS and not plan.gradient_checkpointing:
        remedy = "switch on gradient_checkpointing"
    else:
        remedy = _REMEDIES[term]
    return TrainingStopped(
        f"out of memory: {lines[0] if lines else type(error).__name__}\n"
        f"planned for {plan.tokens:,} tokens at a time:\n{plan.table()}\n"
        f"most likely too large: {term}",
        remedy,
    )


_TOKENS_REMEDY = (
    "halve batch_size and double gradient_accumulation (the result is the same); "
    "at batch_size 1 lower max_length"
)
_REMEDIES = {
    OPTIMIZER: "use optimizer = adamw_8bit, or lower rank",
    ACTIVATIONS: _TOKENS_REMEDY,
    LAYER: _TOKENS_REMEDY,
    HEAD: _TOKENS_REMEDY,
}
_WEIGHTS_REMEDY = "the model itself is too large for this device: take a smaller one"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: allocated tensors on CUDA, the resident process elsewhere.

    The process figure includes libraries, and on Linux also pages of mapped files.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        return _linux_peak()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def reset_peak_memory(device: torch.device) -> None:
    """Measure peaks from here on, where the system can (CUDA and Linux).

    Without it the peak on the CPU may be that of loading, which maps the whole checkpoint.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
                control.write("5")
        except OSError:  # some containers forbid it: the peak then includes loading
            return


def _linux_peak() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
