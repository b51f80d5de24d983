"""Traps for what hostile input may try: the network, other programs, endless work, memory."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exams.suite import Case
from qlora_core.errors import QloraError

EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system",
          "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")  # fmt: skip
"""What Python reports to an audit hook, and a model's files must never cause."""
OURS = ("qlora_core.data.bounded_child", "'uname'", "['ninja', '--version']")
"""Fixed programs, whatever the input says: what renders templates, what Python's `platform` asks,
and what transformers' class of RWKV asks when it is built.
"""


class TookTooLong(BaseException):
    """The work did not end in time. No handler of ordinary exceptions may swallow it."""


@dataclass
class Watch:
    """What happened while a piece of work ran."""

    events: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Of the processor: the machine may be busy with other things."""
    result: Any = None
    error: BaseException | None = None

    @property
    def refused(self) -> bool:
        """Whether the work ended in one of our own clear errors."""
        return isinstance(self.error, QloraError)

    def fault(self, limit: float) -> str:
        """What must not have happened, empty where nothing did."""
        if isinstance(self.error, TookTooLong):
            return f"did not end (after {self.seconds:.1f} s of the processor)"
        if self.error is not None and not self.refused:
            return f"{type(self.error).__name__}: {str(self.error)[:200]}"
        if self.events:
            return f"caused {', '.join(sorted(set(self.events)))}"
        return "" if self.seconds <= limit else f"took {self.seconds:.2f} s"


_current: list[Watch] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _current and event in EVENTS and not any(own in str(arguments) for own in OURS):
        names = [a for a in arguments if isinstance(a, str)][:2]
        _current[-1].events.append(" ".join([event, *names]))


def watch(work: Callable[[], Any], *, patience: float = 60.0) -> Watch:
    """Run ``work`` under the traps, at most ``patience`` seconds of it."""
    if not _installed:
        sys.addaudithook(_hook)  # for good: Python has no way to take one off
        _installed.append(True)
    found = Watch()
    _current.append(found)
    start = time.process_time()
    try:
        with _alarm(patience):
            found.result = work()
    except (Exception, SystemExit, TookTooLong) as error:
        found.error = error
    finally:
        found.seconds = time.process_time() - start
        _current.pop()
    return found


def settle(first: Callable[[], Any]) -> None:
    """Do once what loads libraries, and keep Python from searching them for garbage later."""
    watch(first)
    gc.collect()
    gc.freeze()


def peak_of(work: Callable[[], Any]) -> float:
    """Megabytes that Python allocated at most while ``work`` ran (which may raise)."""
    tracemalloc.start()
    try:
        work()
    except (Exception, SystemExit):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / 1e6


def canary(folder: Path, name: str = "canary") -> tuple[Path, str]:
    """A file that must never appear, and a line of Python that would make it."""
    path = folder / f"{name}-was-run"
    return path, f"open({str(path)!r}, 'w').write('run')"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TookTooLong

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_a_child(name: str, arguments: list[str], *, seconds: float) -> Case:
    """A baseline's case: whether Python with these arguments ends well, in time and in 4 GB."""
    limited = ["bash", "-c", 'ulimit -v 4000000; exec "$@"', "limited", sys.executable]
    start = time.perf_counter()
    fault = ""
    try:
        done = subprocess.run(
            [*limited, *arguments], capture_output=True, text=True, timeout=seconds, check=False,
            input="",
        )  # fmt: skip
        if done.returncode:
            fault = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    except subprocess.TimeoutExpired:
        fault = f"still running after {seconds:g} s"
    return Case(name, not fault, fault, {"seconds": time.perf_counter() - start})
