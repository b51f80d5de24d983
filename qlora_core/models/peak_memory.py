"""The memory that a run took: measured, and explained where it was too much."""

from __future__ import annotations

import sys

import torch

from qlora_core.errors import QloraError, TrainingStopped, first_line
from qlora_core.models.memory_plan import (
    ACTIVATIONS,
    FOUR_BIT,
    HEAD,
    LAYER,
    OPTIMIZER,
    REST,
    MemoryPlan,
)


def explain_out_of_memory(error: BaseException, plan: MemoryPlan) -> QloraError:
    """The plan's table, the term that most likely grew too large, and what to change next."""
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
        f"out of memory: {first_line(error)}\n"
        f"planned for {plan.tokens:,} tokens at a time:\n{plan.table()}\n"
        f"most likely too large: {term}",
        remedy,
    )


_TOKENS_REMEDY = (
    "halve batch_size and double gradient_accumulation (the result is the same); "
    "at batch_size 1, or where packed rows do not get shorter, lower max_length"
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
