"""Device and compute dtype, from a table of machines."""

from __future__ import annotations

import pytest
import torch

from qlora_core.errors import BadInput
from qlora_core.models.devices import Hardware, choose_compute_dtype, choose_device, parse_dtype

LAPTOP = Hardware()
NEW_CPU = Hardware(cpu_bf16=True)
T4 = Hardware(accelerator="cuda", count=1)
H100 = Hardware(accelerator="cuda", count=1, native_bf16=True)
EIGHT = Hardware(accelerator="cuda", count=8, native_bf16=True, local_rank=3)
XPU = Hardware(accelerator="xpu", count=1, native_bf16=True, quantizes_on=frozenset({"cpu", "xpu"}))
WRONG_TORCH = Hardware(unused_gpus=1, torch_build="2.13.0+cpu")


@pytest.mark.parametrize(
    ("hardware", "device", "dtype"),
    [
        (LAPTOP, "cpu", torch.float32),
        (NEW_CPU, "cpu", torch.bfloat16),
        (T4, "cuda:0", torch.float16),
        (H100, "cuda:0", torch.bfloat16),
        (EIGHT, "cuda:3", torch.bfloat16),
        (XPU, "xpu:0", torch.bfloat16),
    ],
)
def test_device_and_dtype_follow_from_the_machine(
    hardware: Hardware, device: str, dtype: torch.dtype
) -> None:
    chosen = choose_device(hardware=hardware)
    assert (str(chosen), choose_compute_dtype(chosen, hardware=hardware)) == (device, dtype)


def test_a_gpu_that_torch_cannot_use_stops_instead_of_training_on_the_cpu() -> None:
    with pytest.raises(BadInput, match=r"1 NVIDIA GPU.*2\.13\.0\+cpu") as caught:
        choose_device(hardware=WRONG_TORCH)
    assert "--device cpu" in caught.value.remedy
    with pytest.raises(BadInput, match="cannot use them"):
        choose_device("cuda", hardware=WRONG_TORCH)


def test_the_cpu_is_used_when_it_is_asked_for() -> None:
    assert choose_device("cpu", hardware=WRONG_TORCH) == torch.device("cpu")
    assert choose_device("cpu", hardware=H100) == torch.device("cpu")


def test_an_accelerator_that_bitsandbytes_does_not_support_is_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = Hardware(accelerator="mtia", count=1)
    assert choose_device(hardware=odd) == torch.device("cpu")
    assert "bitsandbytes does not support mtia" in caplog.text


def test_several_gpus_without_a_launcher_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    two = Hardware(accelerator="cuda", count=2, native_bf16=True)
    assert choose_device(hardware=two) == torch.device("cuda:0")
    assert "accelerate launch" in caplog.text


@pytest.mark.parametrize("name", ["cuda:9", "mps", "banana"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        choose_device(name, hardware=H100)


def test_more_processes_than_devices_are_refused() -> None:
    with pytest.raises(BadInput, match="there are 1"):
        choose_device(hardware=Hardware(accelerator="cuda", count=1, local_rank=1))


def test_this_machine_can_be_observed() -> None:
    here = Hardware.observe({"LOCAL_RANK": "2"})
    assert here.local_rank == 2
    assert "cpu" in here.quantizes_on
    assert here.torch_build == torch.__version__
    assert (here.accelerator is None) == (here.count == 0)


def test_dtypes_are_read_by_their_usual_names() -> None:
    assert parse_dtype("bf16") is parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(BadInput):
        parse_dtype("int7")
