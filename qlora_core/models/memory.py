"""How much memory a run takes, term by term, said before its first step.

The closed form of a QLoRA step: everything that stays, plus the larger of two moments, the
backward pass of one layer and that of the head with its loss. What a step holds depends on the
way that it computes (``step_memory``): before a run the way is assumed from the structure, and
the plan is made again for the way that was taken.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlora_core.models.memory_plan import (
    ACTIVATIONS,
    ADAPTERS,
    CONTEXT,
    FOUR_BIT,
    HEAD,
    LAYER,
    OPTIMIZER,
    REST,
    MemoryPlan,
)
from qlora_core.models.names import heads
from qlora_core.models.quantization import convertible, family_skips, is_within, library_skips
from qlora_core.models.quantization_report import parameters_once
from qlora_core.models.selection import Selection, ends_with, select_layers
from qlora_core.models.skeleton import build_skeleton
from qlora_core.models.step_memory import (
    PLAIN,
    HandLayer,
    LayerMemory,
    Way,
    fast_way,
    head_bytes,
    layers_of,
)
from qlora_core.models.structure import Structure, analyse
from qlora_core.registry.detect import detect
from qlora_core.registry.detection import Detection

BYTES_PER_4_BIT_WEIGHT = {True: 0.5 + (8 + 32 / 256) / 8 / 64, False: 0.5 + 4 / 64}
"""With and without double quantization: 4.127 and 4.5 bits (QLoRA paper, section 3)."""
BYTES_PER_DENSE_WEIGHT = 2 + 8 / 64
"""Of a weight while it is dequantized, its constants with it."""
OPTIMIZER_BYTES = {"adamw": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Per trainable parameter."""
CONTEXT_BYTES = 2**29
"""CUDA's context and workspaces; on the CPU the process itself with all its libraries."""
OVERHEAD = {"hand": 0.25, "own": 0.6, "cuda": 0.04}
"""What allocators waste: the C library's on activations, less where all layers are by hand and so
make few blocks; torch's on everything."""
KERNEL_BYTES, KERNELS = 0.6 * 2**20, 1024
"""On CPUs a 16-bit matrix product of new dimensions leaves a compiled kernel behind, whatever the
matrices' size (some 0.65 MiB measured); oneDNN keeps the last 1024."""
KERNELS_PER_LENGTH = {"hand": 32, "own": 48}
"""Of a micro-batch with another number of tokens than all before."""


def plan_memory(
    source: Detection | Mapping[str, Any] | nn.Module,
    *,
    rank: int = 16,
    tokens: int = 2048,
    packed_tokens: int | None = None,
    length: int | None = None,
    lengths: int | None = None,
    learned: float = 1.0,
    targets: str = "all",
    optimizer: str = "paged_adamw_32bit",
    compute_dtype: torch.dtype = torch.bfloat16,
    quantize: str | None = "nf4",
    double_quantization: bool = True,
    gradient_checkpointing: bool = True,
    device: str = "cuda",
    way: Way | None = None,
) -> MemoryPlan:
    """The memory that one training step takes, from the config alone.

    ``tokens`` is batch size times length of one micro-batch, ``packed_tokens`` the most where
    samples are packed, ``length`` that of the longest sample, ``lengths`` how many different
    numbers of tokens micro-batches have (None: no end of them), ``learned`` the share of tokens
    that the loss is computed on. ``way`` None supposes that no probe refuses what is fast on
    ``device``, where the structure allows it. Builds the model's skeleton: seconds, and no memory
    at any size.
    """
    planner = Planner.of(
        source, rank=rank, targets=targets, optimizer=optimizer, compute_dtype=compute_dtype,
        quantize=quantize, double_quantization=double_quantization, device=device,
    )  # fmt: skip
    load = Load(
        tokens=tokens, packed_tokens=packed_tokens or tokens, length=length or tokens,
        lengths=lengths, packed_lengths=lengths, learned=learned,
    )  # fmt: skip
    if way is not None:
        return planner.plan(load, way, gradient_checkpointing=gradient_checkpointing)
    return planner.suppose(load, fast_way(device), gradient_checkpointing=gradient_checkpointing)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What comes by in micro-batches."""

    tokens: int
    """The most in one, padding included."""
    packed_tokens: int
    """The most in one where samples are packed."""
    length: int
    """Of the longest sample."""
    lengths: int | None
    """How many different numbers of tokens padded micro-batches have; None: no end of them."""
    packed_lengths: int | None
    """The same of packed ones."""
    learned: float
    """The share of tokens that the loss is computed on."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """All that a plan needs to know of model and settings; makes one plan for each way."""

    skeleton: Any
    structure: Structure
    packed: int
    """Weights in 4 bits."""
    rest: int
    """All other weights."""
    adapted: int
    """Trainable parameters."""
    ranks: Mapping[str, int]
    """Sum of ranks by path of the decoder layer."""
    double_quantization: bool
    optimizer: str
    wide: int
    """Bytes of what is neither in 4 bits nor trained."""
    scale: float
    """The size of an activation over that in 16 bits."""
    device: str

    @classmethod
    def of(
        cls, source: Detection | Mapping[str, Any] | nn.Module, *, rank: int, targets: str,
        optimizer: str, compute_dtype: torch.dtype, quantize: str | None,
        double_quantization: bool, device: str,
    ) -> Planner:  # fmt: skip
        """See ``plan_memory``."""
        found = source if isinstance(source, Detection) else detect(source)
        skeleton = build_skeleton(found.config)
        structure = analyse(skeleton)
        packed, rest = _weights(skeleton, found, quantized=quantize is not None)
        chosen = select_layers(skeleton, found.architecture, targets)
        layers = ((path, _within(path, structure.layers)) for path in chosen.modules)
        counts = Counter(layer for _, layer in layers if layer)
        wide = 4 if compute_dtype == torch.float32 else 2
        widened = device == "cuda" and _norms_by_torch(skeleton, structure)
        return cls(
            skeleton=skeleton, structure=structure, packed=packed, rest=rest,
            adapted=_adapter_parameters(skeleton, chosen, rank),
            ranks={layer: rank * count for layer, count in counts.items()},
            double_quantization=double_quantization, optimizer=optimizer,
            wide=wide, scale=2.0 if widened else wide / 2, device=device,
        )  # fmt: skip

    def suppose(self, load: Load, way: Way, *, gradient_checkpointing: bool) -> MemoryPlan:
        """Before a run: for as much of ``way`` as the structure allows, and if it is refused."""
        supposed = way.within(self.skeleton)
        plan = self.plan(load, supposed, gradient_checkpointing=gradient_checkpointing)
        if supposed == PLAIN:
            return plan
        refused = self.plan(load, PLAIN, gradient_checkpointing=gradient_checkpointing)
        return dataclasses.replace(plan, if_refused=refused.total)

    def plan(self, load: Load, way: Way, *, gradient_checkpointing: bool) -> MemoryPlan:
        """For a step that computes by ``way``."""
        tokens = load.packed_tokens if way.packed else load.tokens
        layers = layers_of(self.structure, self.skeleton, way, self.ranks)
        work, dense = self._of_layer(layers, tokens, load.length, again=gradient_checkpointing)
        kept = self.scale * sum(
            layer.kept(tokens, load.length, again=gradient_checkpointing) for layer in layers
        )
        buffer = dense if way.by_hand or way.fused else 0.0
        terms = {
            FOUR_BIT: self.packed * BYTES_PER_4_BIT_WEIGHT[self.double_quantization],
            REST: self.rest * self.wide,
            ADAPTERS: self.adapted * 4,
            OPTIMIZER: self.adapted * (4 + OPTIMIZER_BYTES[self.optimizer]),
            ACTIVATIONS: kept,
            LAYER: work + dense - buffer,
            HEAD: self._head(way, load, tokens),
        }
        share, wasted = OVERHEAD["cuda"], sum(terms.values()) - min(terms[LAYER], terms[HEAD])
        terms[CONTEXT] = CONTEXT_BYTES + buffer
        if self.device == "cpu":
            code = "hand" if all(isinstance(layer, HandLayer) for layer in layers) else "own"
            share, wasted = OVERHEAD[code], kept + terms[LAYER]
            lengths = load.packed_lengths if way.packed else load.lengths
            terms[CONTEXT] += self._kernels(lengths, KERNELS_PER_LENGTH[code])
        terms[CONTEXT] += share * wasted
        return MemoryPlan(
            terms={name: round(size) for name, size in terms.items()},
            gradient_checkpointing=gradient_checkpointing,
            tokens=tokens,
            road=_words(way, layers),
            wasted=share,
        )

    def _of_layer(
        self, layers: list[LayerMemory], tokens: int, length: int, *, again: bool
    ) -> tuple[float, float]:
        """Bytes of the heaviest layer's work, and of the most weights dequantized at once."""
        work = max((layer.work(tokens, length, again=again) for layer in layers), default=0.0)
        dense = max((layer.dense for layer in layers), default=0)
        return self.scale * work, dense * BYTES_PER_DENSE_WEIGHT

    def _head(self, way: Way, load: Load, tokens: int) -> float:
        vocabulary, hidden = self.skeleton.get_input_embeddings().weight.shape
        return head_bytes(
            way, tokens=tokens, learned=load.learned, hidden=hidden, vocabulary=vocabulary,
            scale=self.scale,
        )  # fmt: skip

    def _kernels(self, lengths: int | None, each: int) -> float:
        """What compiled kernels take in the end, for so many lengths of micro-batches."""
        made = KERNELS if lengths is None else min(KERNELS, each * lengths)
        return KERNEL_BYTES * made if self.wide == 2 else 0.0


def _words(way: Way, layers: list[LayerMemory]) -> str:
    """The road of a run as its record has it."""
    if way == PLAIN:
        return "the plain road: all by PEFT and transformers"
    by_hand = sum(isinstance(layer, HandLayer) for layer in layers)
    head = "label-only head" if way.label_only else "plain head"
    samples = "packed samples" if way.packed else "padded samples"
    own = f"{by_hand} of {len(layers)} layers by hand" if by_hand else "layers by their own code"
    return f"the fast road: {head}, {samples}, {own}"


def _norms_by_torch(skeleton: nn.Module, structure: Structure) -> bool:
    """Whether its layers hold norms that CUDA's autocast computes in float32, as it does torch's.

    What follows them stays in it: a 4-bit layer answers in its input's dtype. Norms that a
    model writes out itself (Llama's) cast back.
    """
    inside = (m for path in structure.layers for m in skeleton.get_submodule(path).modules())
    return any(isinstance(module, (nn.LayerNorm, nn.RMSNorm)) for module in inside)


def _within(path: str, layers: Collection[str]) -> str | None:
    return next((top for top in heads(path) if top in layers), None)


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


def _adapter_parameters(skeleton: nn.Module, chosen: Selection, rank: int) -> int:
    layers = (skeleton.get_submodule(path) for path in chosen.modules)
    stacks = (skeleton.get_parameter(path).shape for path in chosen.parameters)
    return rank * (
        sum(sum(m.weight.shape) for m in layers if isinstance(m.weight, torch.Tensor))
        + sum(shape[0] * sum(shape[1:]) for shape in stacks)
    )
