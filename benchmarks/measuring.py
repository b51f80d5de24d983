"""What every benchmark measures with: time, peak memory, medians and spread, results on disk.

Imports torch alone: a peer that changes transformers can be measured by the same code.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "unsloth",
            "flash-attn", "qlora-core")  # fmt: skip
RANK = 16
"""Of everyone's adapters."""
Batch = dict[str, torch.Tensor]
Contestant = Callable[[list[Batch]], None]


@dataclass(frozen=True)
class Seen:
    """One run of one contestant."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds per core: of all cores of this process, divided by torch's threads."""
    peak: float | None
    """Bytes above what was held before; None where that cannot be read."""


def measure(run: Contestant, batches: list[Batch]) -> Seen:
    """One run: everything freed before, the peak's mark set anew, a GPU waited for."""
    device = batches[0]["input_ids"].device
    start = _settled(device)
    wall, processor = time.perf_counter(), time.process_time()
    run(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = _peak(device)
    above = None if start is None or peak is None else peak - start
    return Seen(wall, processor / torch.get_num_threads(), above)


def _settled(device: torch.device) -> float | None:
    """Free what is free and start the peak anew; the bytes that are held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = resident("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return held


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resident("VmHWM")


def resident(field: str) -> float | None:
    """Bytes of a field of this process's status (VmRSS, VmHWM); None where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return float(line.split()[1]) * 1024
    return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def surroundings() -> dict[str, Any]:
    """Versions, cores, threads, load and accelerator: what figures depend on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    installed = {dist.name.lower(): dist.version for dist in distributions()}
    return {
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "python": platform.python_version(), "machine": platform.machine(), "gpu": gpu,
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": load,
        "openmp": [os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")],
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def write(path: Path, result: Any) -> None:
    """Results as JSON, whole or not at all: a run may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def as_json(rounds: Sequence[Seen]) -> list[dict[str, float | None]]:
    """Every run as it was seen, for the results file."""
    return [asdict(seen) for seen in rounds]
