"""Processes that train together over gloo, as a launcher would have started them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState

from exams.forks import fork
from exams.soak import small
from qlora_core.errors import QloraError
from qlora_core.training.schema import TrainSettings

PATIENCE = 120
"""Seconds for two processes to end."""


Prepare = Callable[[int], Sequence[object]]
"""Called in each process with its rank: changes the world, and returns observers."""


class Ended(NamedTuple):
    """How one process ended."""

    code: int
    words: str


def nothing(rank: int) -> Sequence[object]:  # noqa: ARG001
    """No observers."""
    return ()


def together(settings: TrainSettings, prepare: Prepare = nothing, count: int = 2) -> list[Ended]:
    """Train in ``count`` processes over gloo, forked from this one."""
    logs = Path(settings.output).parent
    return side_by_side(lambda rank: small.run(settings, *prepare(rank)), logs, count)


def side_by_side(work: Callable[[int], object], logs: Path, count: int) -> list[Ended]:
    """``work`` of each rank in a process of its own; what they print goes to files in ``logs``."""
    port = free_port()
    children = {}
    for rank in range(count):
        log = logs / f"rank {rank}.log"
        child = fork()
        if not child:
            _become(rank, count, port, log)
            os._exit(_code_of(work, rank))
        children[child] = log
    deadline = time.monotonic() + PATIENCE
    ended = []
    for child, log in children.items():
        code = _wait(child, deadline)
        ended.append(Ended(code, log.read_text(errors="replace")[-2000:]))
    return ended


def _become(rank: int, count: int, port: int, log: Path) -> None:
    """Make this child the process ``rank`` that a launcher would have started."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    PartialState._reset_state()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    os.environ |= {name: str(value) for name, value in names.items()}


def _code_of(work: Callable[[int], object], rank: int) -> int:
    try:
        work(rank)
    except QloraError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _wait(child: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
