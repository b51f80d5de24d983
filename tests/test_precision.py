"""Loss scaling of float16: what a process or a checkpoint may lack."""

from __future__ import annotations

import pytest
import torch

from qlora_core.training.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture
def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def test_a_process_without_a_sample_unscales_what_the_others_sum(
    parameter: torch.nn.Parameter,
) -> None:
    with_sample, without = Precision(CPU, torch.float16), Precision(CPU, torch.float16)
    with_sample.scale(parameter.sum()).backward()
    scaled = parameter.grad.clone()
    for precision in (with_sample, without):
        parameter.grad = scaled.clone()  # as their sum arrives in every process
        precision.unscale(torch.optim.SGD([parameter]))
        precision.update()
        assert torch.equal(parameter.grad, torch.ones(3))
    assert with_sample.scaler.state_dict() == without.scaler.state_dict()


@pytest.mark.parametrize("before", [torch.bfloat16, torch.float32])
def test_a_run_goes_on_in_float16_from_steps_without_scaling(before: torch.dtype) -> None:
    kept = Precision(CPU, before).scaler.state_dict()
    precision = Precision(CPU, torch.float16)
    fresh = precision.scaler.state_dict()
    precision.restore(kept)
    assert precision.scaler.state_dict() == fresh
    Precision(CPU, before).restore(fresh)
