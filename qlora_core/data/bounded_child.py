"""The process that renders chat templates: requests on stdin, answers on stdout, one a line."""

from __future__ import annotations

import json
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

try:
    import resource
except ImportError:  # not on Windows: there the parent watches alone
    resource = None  # type: ignore[assignment]

MEGABYTE = 1 << 20
_KEPT = 64
"""So many compiled templates are kept."""


class Bounds(NamedTuple):
    """What one rendering may take: processor seconds, bytes of memory, characters of text."""

    seconds: int
    memory: int
    output: int


class Renderer:
    """Answers requests to render, with the environment that transformers makes for templates."""

    def __init__(self, bounds: Bounds) -> None:
        # transformers 5.0 would load it, which takes seconds; no template can use it
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._bounds = bounds
        self._environment = _compile_jinja_template("").environment
        self._templates: OrderedDict[str, Any] = OrderedDict()
        self._clock: str | None = None

    def answer(self, request: dict[str, Any]) -> tuple[str, Any]:
        """A kind and a value: ``done`` and the texts or spans, or ``refused`` and why.

        Or ``exhausted``, or ``unknown`` for a template that has to be sent (again).
        """
        key, source = request["key"], request.get("source")
        if source is None and key not in self._templates:
            return "unknown", None
        self._limit_time()
        self._clock = request["clock"]
        try:
            template = self._template(key, source)
            if request.get("blocks"):
                return "done", self._blocks(template, request["contexts"][0])
            texts = [template.render(context) for context in request["contexts"]]
        except MemoryError:
            return "exhausted", None
        except Exception as error:  # templates run any expression over the user's data
            return "refused", str(error) or type(error).__name__
        fits = max(map(len, texts)) <= self._bounds.output
        return ("done", texts) if fits else ("exhausted", None)

    def _template(self, key: str, source: str | None) -> Any:
        if key not in self._templates:
            if len(self._templates) == _KEPT:
                self._templates.popitem(last=False)
            self._limit_memory()
            self._templates[key] = self._environment.from_string(
                source, globals={"strftime_now": self._now}
            )
        self._templates.move_to_end(key)
        return self._templates[key]

    def _blocks(self, template: Any, context: dict[str, Any]) -> list[tuple[int, int]]:
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        with self._environment.activate_tracker(blocks, spans):
            for block in template.generate(context):
                blocks.append(block)  # noqa: PERF402  (the tracker reads the list as it grows)
        return spans

    def _now(self, form: str) -> str:
        moment = datetime.fromisoformat(self._clock) if self._clock else datetime.now()
        return moment.strftime(form)

    def _limit_time(self) -> None:
        """From now on so many seconds of processor time; then the signal ends this process."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, self._bounds.seconds)

    def _limit_memory(self) -> None:
        """From now on so many bytes of address space, on systems that tell how many there are."""
        status = Path("/proc/self/statm")
        if resource is not None and status.is_file():
            pages = int(status.read_text(encoding="ascii").split()[0])
            _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + self._bounds.memory)


def _limit(which: int, value: int) -> None:
    """Lower or raise a soft limit; the hard one, which nobody could raise again, stays."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard < 0 else min(value, hard), hard))


def serve(read: Callable[[], bytes], write: Callable[[bytes], Any], bounds: Bounds) -> None:
    """Answer until there is nothing more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if resource is not None:
        _limit(resource.RLIMIT_CORE, 0)
    renderer = Renderer(bounds)
    write(b"ready\n")
    while line := read():
        write(json.dumps(renderer.answer(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":

    def _write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    serve(sys.stdin.buffer.readline, _write, Bounds(*map(int, sys.argv[1:])))
