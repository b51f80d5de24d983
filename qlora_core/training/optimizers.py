"""AdamW and its schedules, from torch, bitsandbytes and transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from qlora_core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from qlora_core.training.schema import TrainSettings

LARGE = 13_500_000_000
"""Parameters above which the QLoRA paper halves the rate (its table 9: 7B and 13B, 33B and 65B)."""


def default_learning_rate(parameters: int) -> float:
    """2e-4 up to 13 billion base weights, else 1e-4 (QLoRA paper, arXiv 2305.14314, table 9)."""
    return 2e-4 if parameters <= LARGE else 1e-4


def optimizer_name(settings: TrainSettings, device: torch.device) -> str:
    """The optimizer that ``settings`` asks for on ``device``.

    ``auto`` is the paged AdamW of the QLoRA paper (section 3) where there is paging: on CUDA.
    Raises BadInput for a paged optimizer on another device, and for an 8-bit one that the
    installed bitsandbytes does not have there.
    """
    name = settings.optimizer
    if name == "auto":
        return "paged_adamw_32bit" if device.type == "cuda" else "adamw"
    if name.startswith("paged_") and device.type != "cuda":
        raise BadInput(
            f"optimizer = {name!r} needs a CUDA device, and the run is on {device.type}",
            "use adamw or adamw_8bit",
        )
    if name == "adamw_8bit" and not runs_8bit(device):
        raise BadInput(
            f"the installed bitsandbytes has no 8-bit optimizer for {device.type}",
            "use adamw, or a newer bitsandbytes",
        )
    return name


def runs_8bit(device: torch.device) -> bool:
    """Whether bitsandbytes can run its 8-bit optimizers there; on a CPU since version 0.50."""
    import bitsandbytes  # noqa: F401  (registers its kernels)

    if device.type == "cuda":
        return True  # registered at the first use
    operator, key = "bitsandbytes::optimizer_update_8bit_blockwise", device.type.upper()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, key))


def build_optimizer(
    settings: TrainSettings, parameters: Iterable[nn.Parameter], device: torch.device, rate: float
) -> Optimizer:
    """AdamW with betas 0.9 and 0.999 (the QLoRA paper's) over ``parameters``."""
    name = optimizer_name(settings, device)
    options = {"lr": rate, "betas": (0.9, 0.999), "weight_decay": settings.weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, **options)  # type: ignore[arg-type]
    import bitsandbytes

    classes = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
    }
    optimizer: Optimizer = classes[name](parameters, **options)
    return optimizer


def require_warmup(warmup: float, total: int) -> None:
    """Raise BadInput for a warm-up longer than the run."""
    if warmup_steps(warmup, total) > total:
        raise BadInput(
            f"warmup = {warmup:g} steps, and the run has {total}", "lower warmup, or train longer"
        )


def warmup_steps(warmup: float, total: int) -> int:
    """``warmup`` as steps: a share of ``total`` below 1, else the number itself."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def restore_schedule(schedule: LambdaLR, state: dict[str, Any]) -> None:
    """Go to the step of a ``schedule.state_dict()``, with the rates that are set now."""
    schedule.load_state_dict({**state, "base_lrs": schedule.base_lrs})
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def require_same_state(before: str | None, now: str) -> None:
    """Raise BadInput where the optimizer ``now`` cannot go on from the state of ``before``.

    Both are names of `optimizer_name`; those of one kind differ in where their state lies.
    """
    if before is not None and before.removeprefix("paged_") != now.removeprefix("paged_"):
        raise BadInput(
            f"the checkpoints hold the state of {before}, from which {now} cannot go on",
            f"resume with --optimizer {before}, or start a run in another folder",
        )


def build_schedule(optimizer: Optimizer, *, name: str, warmup: float, total: int) -> LambdaLR:
    """The learning rate over ``total`` steps: up during the warm-up, then ``name``.

    transformers' own functions, so that a run can be compared with its Trainer's.
    """
    warm = warmup_steps(warmup, total)
    if name == "constant":
        return get_constant_schedule_with_warmup(optimizer, warm)  # type: ignore[no-any-return]
    make = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear_schedule_with_warmup}
    return make[name](optimizer, warm, total)  # type: ignore[no-any-return]
