"""The processes of one run, through Accelerate: who I am, and sums over all of us.

Each process computes its share of a group; adapter gradients are summed in one message
per step. The base weights are frozen, so nothing else needs to be exchanged, and a process
without a sample in the last group of an epoch needs no special case.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce
from torch import nn

from qlora_core.errors import BadInput, TrainingStopped, first_line

SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What `accelerate launch` sets for processes that are to share one model -> its name."""


class Processes:
    """This process among those that ``accelerate launch`` (or nobody) started.

    Whatever is exchanged raises TrainingStopped where another of them has ended.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        for variable, name in SHARDED.items():
            if os.environ.get(variable, "").lower() in ("1", "true"):
                raise BadInput(
                    f"{name} was asked for ({variable}); every process holds the whole 4-bit base, "
                    "which is replicated, not sharded",
                    "use `accelerate launch --multi_gpu` (data parallel), or transformers' Trainer",
                )
        self.state = PartialState(cpu=cpu)
        self.count: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.main: bool = self.state.is_main_process

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each of ``values`` summed over all processes, in float64."""
        if self.count == 1:
            return list(values)
        with self._exchange():
            total = reduce(torch.tensor(values, dtype=torch.float64, device=device), "sum")
        return [float(value) for value in total]

    def all(self, value: bool, device: torch.device) -> bool:
        """Whether ``value`` is true in every process; all of them have to ask."""
        return self.sum([float(value)], device)[0] == self.count

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, in one message."""
        if self.count == 1:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        with self._exchange():
            flat = reduce(torch.cat([part.flatten() for part in parts]), "sum")
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parts]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def same_start(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the main process's values."""
        if self.count > 1:
            with torch.no_grad(), self._exchange():
                for parameter in parameters:
                    parameter.copy_(broadcast(parameter.detach().clone()))

    def from_main(self, value: Any) -> Any:
        """The main process's ``value``, on every process."""
        if self.count == 1:
            return value
        with self._exchange():
            return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every process is here."""
        with self._exchange():
            self.state.wait_for_everyone()

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Tell what a broken connection means: the libraries name a socket, and nothing to do."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo's and NCCL's: there is no narrower class
            raise TrainingStopped(
                f"rank {self.rank} of {self.count} processes (on {socket.gethostname()}) lost "
                f"another process of this run: {first_line(error)}",
                "look for the first error among the processes' outputs; once it is repaired, the "
                "same command with --resume goes on from the newest checkpoint",
            ) from error
