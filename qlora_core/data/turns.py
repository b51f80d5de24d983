"""A row as a conversation: every turn checked, every other spelling of a role understood."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_core.data.columns import Columns
from qlora_core.data.json_rows import parse

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool",
    "tool_response": "tool", "function_response": "tool",
    "function_call": "function_call", "tool_call": "function_call",
}  # fmt: skip
_KEYS = {"role", "content", "from", "value", "tool_calls", "tool_call_id", "name",
         "reasoning_content", "thinking"}  # fmt: skip
_SPEAKERS = ("user", "assistant", "system", "tool")
_KEPT = ("tool_call_id", "name", "reasoning_content", "thinking")


class Malformed(ValueError):
    """The row is not what its format says. It is refused."""


class NothingToLearn(ValueError):
    """The row is well-formed and teaches nothing. It is dropped and counted."""


@dataclass
class Conversation:
    """The turns of one row, as chat templates take them, and what was noticed on the way."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    notes: list[str] = field(default_factory=list)


def text_of(values: Mapping[str, Any], columns: Columns) -> str:
    """The document of a plain text row."""
    name = columns.columns[0].name
    text = _text(values.get(name), name)
    if not text.strip():
        raise NothingToLearn("the text is empty")
    return text


def conversation_of(values: Mapping[str, Any], columns: Columns) -> Conversation:
    """The conversation of a row. Raises Malformed or NothingToLearn with the reason."""
    parts: dict[str, list[tuple[str, Any]]] = {}
    for name, target, required in columns.columns:
        value = values.get(name)
        if value is None or (value == "" and not required):
            if required:
                raise Malformed(_missing(values, name))
            continue
        parts.setdefault(target, []).append((name, value))
    result = Conversation([], _tools(parts.get("tools", ())))
    for target in ("system", "history", "messages", "user", "assistant"):
        if target in parts:
            result.messages.extend(_messages(target, parts[target], result.notes))
    _check(result)
    return result


def _messages(target: str, parts: list[tuple[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    texts = []
    for name, value in parts:
        if target == "history":
            messages += _history(value, name)
        elif target == "messages" or isinstance(value, list):
            messages += _turns(value, name, notes)
        else:
            texts.append(_text(value, name))
    if texts:
        content = "\n\n".join(text for text in texts if text)
        messages.append({"role": target, "content": content})
    return messages


def _turns(value: Any, name: str, notes: list[str]) -> list[dict[str, Any]]:
    if isinstance(value, str):  # a CSV or Parquet column that holds JSON
        value = _json(value, name)
    if not isinstance(value, list) or not value:
        raise Malformed(f'"{name}" must be a list of turns, found {_kind(value)}')
    return [_said(turn) or _turn(turn, f"{name}[{n}]", notes) for n, turn in enumerate(value)]


def _said(turn: Any) -> dict[str, Any] | None:
    """The usual turn, a role and a text, on a short path: files have millions of them."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return None
    said, content = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
    if not isinstance(said, str) or not isinstance(content, str):
        return None
    role = ROLES.get(said)
    return {"role": role, "content": content} if role in _SPEAKERS else None


def _turn(turn: Any, where: str, notes: list[str]) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Malformed(f"{where} is {_kind(turn)}, expected an object")
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise Malformed(_unknown_role(turn, said, where))
    content = turn.get("content")
    if content is None:
        content = turn.get("value")
    if turn.keys() - _KEYS:
        unknown = [key for key in turn if key not in _KEYS and turn[key] is not None]
        notes.extend(f'the key "{key}" of a turn is ignored' for key in unknown)
    message: dict[str, Any] = {"role": role}
    calls = turn.get("tool_calls")
    if role == "function_call":
        message = _function_call(content, where, notes)
    elif calls:
        message["content"] = "" if content is None else _content(content, where)
        message["tool_calls"] = [_call(call, where, notes) for call in _list(calls, where)]
    else:
        message["content"] = _content(content, where)
    message.update((key, turn[key]) for key in _KEPT if turn.get(key) is not None)
    return message


def _check(conversation: Conversation) -> None:
    """Empty turns, turns out of order, and whether an assistant says anything."""
    messages, notes = conversation.messages, conversation.notes
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        notes.append("an empty system turn is left out")
        del messages[0]
    previous = ""
    answers = False
    for number, message in enumerate(messages):
        role = message["role"]
        if not message["content"].strip() and not message.get("tool_calls") and role != "tool":
            raise NothingToLearn(f"the {role} turn is empty")
        if role == previous and role in ("user", "assistant"):
            notes.append(f"two {role} turns in a row")
        elif role == "system" and number:
            notes.append("a system turn after the first turn")
        answers = answers or role == "assistant"
        previous = role
    if not answers:
        raise NothingToLearn("no assistant turn")
    if messages[0]["role"] == "assistant":
        notes.append("the conversation starts with the assistant")
    if previous != "assistant":
        notes.append("the conversation ends without an answer")


def _content(value: Any, where: str) -> str:
    """Text, or the text parts of a content list."""
    if isinstance(value, list):
        parts: list[Any] = [p.get("text") if isinstance(p, dict) else p for p in value]
        if not all(isinstance(part, str) for part in parts):
            raise Malformed(f"{where}.content holds something that is not text")
        return "".join(parts)
    return _text(value, f"{where}.content")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f'"{name}" is {_kind(value)}, expected text')
    return value


def _history(value: Any, name: str) -> Iterable[dict[str, Any]]:
    for number, pair in enumerate(_list(value, name)):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Malformed(f'"{name}"[{number}] must be a pair of question and answer')
        yield {"role": "user", "content": _text(pair[0], f"{name}[{number}]")}
        yield {"role": "assistant", "content": _text(pair[1], f"{name}[{number}]")}


def _function_call(value: Any, where: str, notes: list[str]) -> dict[str, Any]:
    """ShareGPT's function_call turn: JSON text of one call or of a list of them."""
    calls = _json(value, where) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [_call(call, where, notes) for call in calls],
    }


def _call(call: Any, where: str, notes: list[str]) -> dict[str, Any]:
    """A tool call with its arguments as an object, the form that chat templates render.

    Llama 3.1 and its kin call the arguments ``parameters``.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Malformed(f"{where}: a tool call needs a name and arguments")
    other = function.get("arguments") is None and function.get("parameters") is not None
    key = "parameters" if other else "arguments"
    arguments = function.get(key, {})
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}: the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise Malformed(f"{where}: the arguments of {function['name']} are no object")
    parts = (call,) if function is call else (call, function)
    known = {"id", "type", "function", "name", key}
    unknown = [k for part in parts for k in part if k not in known and part[k] is not None]
    notes.extend(f'the key "{name}" of a tool call is ignored' for name in unknown)
    identity = {"id": call["id"]} if call.get("id") else {}
    function = {"name": function["name"], "arguments": arguments}
    return {**identity, "type": "function", "function": function}


def _tools(parts: Iterable[tuple[str, Any]]) -> list[Any] | None:
    tools: list[Any] = []
    for name, value in parts:
        listed = _json(value, name) if isinstance(value, str) else value
        for tool in _list(listed, name):
            if not isinstance(tool, dict):
                raise Malformed(f'"{name}" must hold objects, found {_kind(tool)}')
            bare = "function" not in tool and "name" in tool
            tools.append({"type": "function", "function": tool} if bare else tool)
    return tools or None


def _json(text: str, name: str) -> Any:
    try:
        value, end = parse(text.strip())
    except ValueError as error:
        raise Malformed(f"{name} is not JSON: {error}") from None
    if end < len(text.strip()):
        raise Malformed(f"{name} is not JSON: text after its end")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f'"{name}" must be a list, found {_kind(value)}')
    return value


def _missing(values: Mapping[str, Any], name: str) -> str:
    if name in values:
        return f'"{name}" is null'
    found = ", ".join(str(key)[:40] for key in list(values)[:8]) or "nothing"
    return f'the column "{name}" is missing (found: {found})'


def _unknown_role(turn: Mapping[str, Any], said: Any, where: str) -> str:
    if said is None:
        found = ", ".join(str(key)[:40] for key in list(turn)[:8]) or "nothing"
        return f'{where} has no "role" (found: {found})'
    return f"{where}: unknown role {str(said)[:40]!r} (known: {', '.join(ROLES)})"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:20]}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else "text"
