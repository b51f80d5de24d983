"""Run the part of Go's template language that our Modelfiles are written in, as Ollama does.

Actions: ``range .Messages``, ``if``, ``else if``, ``else``, ``end``, variables, texts in
quotes, fields, and the functions ``eq``, ``not``. Anything else is refused.
Source: Go's text/template, and Ollama's template/template.go for what a template is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq, not_
from typing import Any

_ACTION = re.compile(r'\{\{\s*((?:"(?:[^"\\]|\\.)*"|[^"}])*?)\s*\}\}')
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_FUNCTIONS: dict[str, Callable[..., bool]] = {"eq": eq, "not": not_}


def render_go(source: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama makes of ``messages`` by the template ``source``. Raises ValueError."""
    data = {
        "System": "\n\n".join(m["content"] for m in messages if m["role"] == "system"),
        "Messages": [{"Role": role, "Content": text} for role, text in _collated(messages)],
    }
    actions = _ACTION.split(source)  # text, action, text, action, ..., text
    parts = [part for n, part in enumerate(actions) if n % 2 or part]
    kinds = [bool(n % 2) for n, part in enumerate(actions) if n % 2 or part]
    run = _Run(data, list(zip(kinds, parts, strict=True)))
    body, at = run.body(0)
    if at < len(parts):
        raise ValueError(f"an end too many: {parts[at]}")
    return "".join(run.write(body, data))


def _collated(messages: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Roles and texts; texts of one role that follow each other are joined."""
    waiting: tuple[str, str] | None = None
    for message in messages:
        role, text = message["role"], message["content"]
        if waiting and waiting[0] == role:
            waiting = (role, f"{waiting[1]}\n\n{text}")
            continue
        if waiting:
            yield waiting
        waiting = (role, text)
    if waiting:
        yield waiting


@dataclass
class _Branch:
    """``if`` and ``range``: conditions and what stands under each, "" for ``else``."""

    kind: str
    arms: list[tuple[str, list[Any]]] = field(default_factory=list)


@dataclass
class _Run:
    data: Any
    parts: list[tuple[bool, str]]
    variables: dict[str, Any] = field(default_factory=dict)

    def body(self, at: int) -> tuple[list[Any], int]:
        """The nodes from part ``at`` on, and where their ``end`` or ``else`` is."""
        nodes: list[Any] = []
        while at < len(self.parts):
            is_action, part = self.parts[at]
            word, _, rest = part.partition(" ") if is_action else ("", "", "")
            if word in ("end", "else"):
                break
            if word in ("if", "range"):
                branch, at = self._branch(word, rest, at)
                nodes.append(branch)
            else:
                nodes.append((is_action, part))
            at += 1
        return nodes, at

    def _branch(self, kind: str, condition: str, at: int) -> tuple[_Branch, int]:
        branch = _Branch(kind)
        while True:
            nodes, at = self.body(at + 1)
            branch.arms.append((condition, nodes))
            if at == len(self.parts):
                raise ValueError(f"{kind} has no end")
            if self.parts[at][1] == "end":
                return branch, at
            condition = self.parts[at][1].removeprefix("else").strip().removeprefix("if ")

    def write(self, nodes: Sequence[Any], dot: Any) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, _Branch):
                yield from self._write_branch(node, dot)
            elif not node[0]:
                yield node[1]
            elif assigned := re.fullmatch(r"(\$\w+) :?= (.+)", node[1]):
                self.variables[assigned[1]] = self._value(assigned[2], dot)
            else:
                yield str(self._value(node[1], dot))

    def _write_branch(self, branch: _Branch, dot: Any) -> Iterator[str]:
        if branch.kind == "range":
            condition, nodes = branch.arms[0]
            for item in self._value(condition, dot):
                yield from self.write(nodes, item)
            return
        for condition, nodes in branch.arms:
            if not condition or self._value(condition, dot):
                yield from self.write(nodes, dot)
                return

    def _value(self, expression: str, dot: Any) -> Any:
        name, *words = _WORD.findall(expression)
        if words:
            if name not in _FUNCTIONS:
                raise ValueError(f"not in this part of the language: {expression}")
            return _FUNCTIONS[name](*(self._value(word, dot) for word in words))
        if name.startswith('"'):
            return json.loads(name)
        if name in ("true", "false"):
            return name == "true"
        if name in self.variables:
            return self.variables[name]
        where = self.data if name.startswith("$") else dot
        if name.removeprefix("$.").removeprefix(".") not in where:
            raise ValueError(f"not in this part of the language: {expression}")
        return where[name.removeprefix("$.").removeprefix(".")]
