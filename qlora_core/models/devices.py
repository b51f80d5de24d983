"""Where to compute and in which number format, decided from plain facts about the machine."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qlora_core.errors import BadInput

log = logging.getLogger("qlora-core")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What decides device and compute dtype. ``observe`` reads it off this machine."""

    accelerator: str | None = None
    """The device type that torch can use beside the CPU (``cuda``, ``xpu``, ``mps``, ...)."""
    count: int = 0
    """How many of them there are."""
    native_bf16: bool = False
    """Whether the accelerator computes in bfloat16 without emulation."""
    cpu_bf16: bool = False
    """Whether the CPU multiplies in bfloat16 (AVX512-BF16, AMX or ARM's BF16)."""
    unused_gpus: int = 0
    """NVIDIA GPUs that the driver shows and torch cannot use."""
    torch_build: str = ""
    """torch's version; a build without GPU support ends in ``+cpu`` or names nothing."""
    quantizes_on: frozenset[str] = frozenset({"cpu", "cuda"})
    """The device types that this bitsandbytes supports."""
    local_rank: int | None = None
    """The number a launcher gave this process on this machine (``LOCAL_RANK``)."""

    @classmethod
    def observe(
        cls, environ: Mapping[str, str] = os.environ, *, device: torch.device | None = None
    ) -> Hardware:
        """The machine this process runs on; what ``device`` computes in, else the current one."""
        kind = _usable_accelerator()
        rank = environ.get("LOCAL_RANK", "")
        return cls(
            accelerator=kind,
            count=torch.accelerator.device_count() if kind else 0,
            native_bf16=kind is not None and _accelerator_has_bf16(kind, device),
            cpu_bf16=_cpu_has_bf16(),
            unused_gpus=0 if kind else _gpus_of_the_driver(),
            torch_build=torch.__version__,
            quantizes_on=_quantizing_devices(),
            local_rank=int(rank) if rank.isdigit() else None,
        )


def choose_device(name: str | None = None, *, hardware: Hardware | None = None) -> torch.device:
    """The device to train on: the accelerator that torch and bitsandbytes support, else the CPU.

    ``name`` (``cpu``, ``cuda``, ``cuda:1``, ...) decides where it is given.
    Under a launcher the device's number is ``LOCAL_RANK``.
    Raises BadInput for a device that is not there, and where the machine has a GPU that this
    torch cannot use: training on the CPU has to be asked for then.
    """
    hardware = Hardware.observe() if hardware is None else hardware
    if name is not None:
        return _named(name, hardware)
    kind = hardware.accelerator
    if kind is None:
        if hardware.unused_gpus:
            raise _unusable_gpu(hardware)
        return torch.device("cpu")
    if kind not in hardware.quantizes_on:
        log.warning("bitsandbytes does not support %s: computing on the CPU", kind)
        return torch.device("cpu")
    if hardware.count > 1 and hardware.local_rank is None:
        log.warning(
            "%d devices, one is used; `accelerate launch` starts one process on each",
            hardware.count,
        )
    return _numbered(kind, hardware.local_rank or 0, hardware)


def choose_compute_dtype(device: torch.device, *, hardware: Hardware | None = None) -> torch.dtype:
    """bfloat16 where the device has it, else float16 on CUDA devices, else float32.

    float16 goes with float32 adapters and loss scaling.
    """
    hardware = Hardware.observe(device=device) if hardware is None else hardware
    if device.type == "cpu":
        return torch.bfloat16 if hardware.cpu_bf16 else torch.float32
    if hardware.native_bf16:
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """``bfloat16``, ``float16`` or ``float32`` (or ``bf16`` ...). Raises BadInput for others."""
    if isinstance(name, torch.dtype):
        return name
    known = {
        "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
        "float16": torch.float16, "fp16": torch.float16,
        "float32": torch.float32, "fp32": torch.float32,
    }  # fmt: skip
    if name not in known:
        raise BadInput(f"{name!r} is no compute dtype", "use bfloat16, float16 or float32")
    return known[name]


def _named(name: str, hardware: Hardware) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"{name!r} is no device", "use cpu, cuda, cuda:1, ...") from None
    if device.type == "cpu":
        return device
    if device.type != hardware.accelerator:
        if device.type == "cuda" and hardware.unused_gpus:
            raise _unusable_gpu(hardware)
        there = ", ".join(filter(None, ("cpu", hardware.accelerator)))
        raise BadInput(f"torch sees no {device.type} device here", f"it sees: {there}")
    number = device.index if device.index is not None else hardware.local_rank or 0
    return _numbered(device.type, number, hardware)


def _numbered(kind: str, number: int, hardware: Hardware) -> torch.device:
    if number >= hardware.count:
        raise BadInput(
            f"device {kind}:{number} was asked for and there are {hardware.count}",
            "start as many processes as there are devices, or check CUDA_VISIBLE_DEVICES",
        )
    return torch.device(kind, number)


def _unusable_gpu(hardware: Hardware) -> BadInput:
    return BadInput(
        f"this machine has {hardware.unused_gpus} NVIDIA GPU(s), and torch "
        f"{hardware.torch_build} cannot use them (a build without CUDA, or a driver too old)",
        "install torch with CUDA (https://pytorch.org/get-started/locally) or update the driver; "
        "to train on the CPU all the same, ask for it with --device cpu",
    )


def _usable_accelerator() -> str | None:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return None
    return str(accelerator.type)


def _accelerator_has_bf16(kind: str, device: torch.device | None) -> bool:
    if kind == "cuda" and torch.version.hip is None:
        asked = device if device is not None and device.type == kind else None
        return torch.cuda.get_device_capability(asked) >= (8, 0)
    probe = getattr(torch.get_device_module(kind), "is_bf16_supported", None)
    return bool(probe and probe())


def _cpu_has_bf16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    probes = (getattr(torch.cpu, name, None) for name in names)
    return any(probe() for probe in probes if probe is not None)


def _quantizing_devices() -> frozenset[str]:
    import bitsandbytes

    return frozenset(getattr(bitsandbytes, "supported_torch_devices", {"cpu", "cuda"}))


def _gpus_of_the_driver() -> int:
    """How many GPUs NVIDIA's driver shows, asked without torch; 0 where there is no driver."""
    try:
        if sys.platform == "win32":
            driver: ctypes.CDLL = ctypes.WinDLL("nvcuda.dll")
        else:
            driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def free_memory_of(device: torch.device) -> int:
    """Bytes of the device's memory that nothing uses at this moment."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def memory_of(device: torch.device) -> int:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
