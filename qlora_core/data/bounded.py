"""Render chat templates in a process of their own, within bounds of time, memory and text.

A chat template is a program that comes with a model. Jinja's sandbox keeps it from files and
from the interpreter, but not from looping for hours, filling the memory, or asking for
``(10**10)**(10**7)``, which no signal handler interrupts. So one long-lived child process
compiles and renders all templates, and is ended, whatever it does, when that takes too much.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from qlora_core.data.bounded_child import MEGABYTE, Bounds
from qlora_core.errors import BadInput

BOUNDS = Bounds(seconds=1, memory=512 * MEGABYTE, output=16 * MEGABYTE)
"""What one rendering may take: processor seconds, bytes beyond the child's own, characters."""
_CLOCK_SECONDS = (10 if hasattr(signal, "setitimer") else 2) * BOUNDS.seconds
"""A busy machine may take longer; less so where nobody counts processor time."""
_START_SECONDS = 120
_WATCH_SECONDS = 0.1


class TemplateRefused(Exception):
    """A template is no Jinja, or raised an error of its own; the text is in its words."""


class TemplateExhausted(BadInput):
    """A template took more than `BOUNDS`; in this process it is not rendered again."""

    def __init__(self) -> None:
        super().__init__(
            f"the chat template was stopped: for one conversation it takes more than "
            f"{BOUNDS.seconds} second, {BOUNDS.memory // MEGABYTE} MB of memory or "
            f"{BOUNDS.output // MEGABYTE} MB of text",
            "read what the template does, or take another copy of the model's tokenizer",
        )


def render(source: str, context: Mapping[str, Any], *, clock: str | None = None) -> str:
    """The text that the template ``source`` renders of ``context``, a mapping of JSON values.

    ``clock`` is the moment (ISO 8601) that ``strftime_now`` tells; None tells the real one.
    Sandbox, filters and extensions are those of transformers.

    Raises TemplateRefused where compiling or rendering fails, TemplateExhausted where it takes
    more than `BOUNDS`.
    """
    return render_all(source, [context], clock=clock)[0]


def render_all(
    source: str, contexts: Sequence[Mapping[str, Any]], *, clock: str | None = None
) -> list[str]:
    """The texts of several contexts, which together are bound as one; raises as `render` does."""
    return [str(text) for text in _asked(source, {"contexts": contexts, "clock": clock})]


def generation_blocks(source: str, context: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The character spans of the ``{% generation %}`` blocks; raises as `render` does."""
    blocks = _asked(source, {"contexts": [context], "clock": None, "blocks": True})
    return [(start, end) for start, end in blocks]


def start() -> None:
    """Start the child now, so that it is ready when the first template is rendered."""
    global _child
    if _child is None or not _child.alive:
        _child = _Child()


def _asked(source: str, request: dict[str, Any]) -> Any:
    key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if key in _exhausted:
        raise TemplateExhausted
    request["key"] = key
    start()
    assert _child is not None
    kind, answer = _child.ask(request)
    if kind == "unknown":
        kind, answer = _child.ask({**request, "source": source})
    if kind == "exhausted":
        _exhausted.add(key)
        raise TemplateExhausted
    if kind == "refused":
        raise TemplateRefused(answer)
    return answer


class _Child:
    """One child process; one thread at a time asks it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (this interpreter, this package)
            [sys.executable, "-P", "-m", "qlora_core.data.bounded_child", *map(str, BOUNDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._own_memory = 0
        self._deadline = time.monotonic() + _START_SECONDS
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self.end)

    @property
    def alive(self) -> bool:
        """Whether it can be asked; a fork of its parent cannot: they would share its pipes."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> tuple[str, Any]:
        """The kind of answer, and its value; ``exhausted`` where the process ended over it."""
        line = json.dumps(request, default=str).encode() + b"\n"
        with self._lock:
            try:
                self._await_start()
                self._deadline = time.monotonic() + _CLOCK_SECONDS
                with contextlib.suppress(OSError):  # where it ended there is nothing to read, too
                    self._to.write(line)
                    self._to.flush()
                answer = self._from.readline()
            except BaseException:
                self.end()  # an answer that is still to come would be taken for the next one's
                raise
            self._deadline = float("inf")
        if not answer.endswith(b"\n"):
            self.end()
            return "exhausted", None
        kind, value = json.loads(answer)
        return kind, value

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def _await_start(self) -> None:
        if self._own_memory:
            return
        if not self._from.readline():
            raise RuntimeError(
                f"the process that renders chat templates does not start: {sys.executable} "
                "-m qlora_core.data.bounded_child"
            )
        self._own_memory = psutil.Process(self._process.pid).memory_info().rss

    def _watch(self) -> None:
        """End the process where the system itself does not."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            while self._process.poll() is None:
                time.sleep(_WATCH_SECONDS)
                allowed = self._own_memory + BOUNDS.memory if self._own_memory else float("inf")
                late = time.monotonic() > self._deadline
                if late or process.memory_info().rss > allowed:
                    self._process.kill()


_child: _Child | None = None
_exhausted: set[str] = set()
