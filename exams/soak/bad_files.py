"""Faulty data files and rows, each with what must be said about it."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from typing import Any, NamedTuple

AROUND = 9
"""How many good rows stand around a bad one."""
GOOD = [b'{"question": "q%d", "answer": "a%d"}' % (i, i) for i in range(9)]

# name -> (a line that is no row, what must be said about it)
FAULTS: dict[str, tuple[bytes, str]] = {
    "no json": (b"hello", "Expecting value"),
    "cut off in a text": (b'{"question": "q", "answer": "a', "Unterminated string"),
    "cut off after a text": (b'{"question": "q", "answer": "a"', "Expecting ',' delimiter"),
    "cut off after a key": (b'{"question": "q", "answer"', "Expecting ':' delimiter"),
    "cut off after a colon": (b'{"question": "q", "answer":', "Expecting value"),
    "single quotes": (b"{'question': 'q', 'answer': 'a'}", "property name"),
    "trailing comma": (b'{"question": "q", "answer": "a",}', "property name|trailing comma"),
    "comma missing": (b'{"question": "q" "answer": "a"}', "Expecting ',' delimiter"),
    "colon missing": (b'{"question" "q"}', "Expecting ':' delimiter"),
    "key without quotes": (b'{question: "q"}', "property name"),
    "two objects": (b'{"question": "q", "answer": "a"}{"question": "q"}', "text after"),
    "comma after the object": (b'{"question": "q", "answer": "a"},', "text after"),
    "comment": (b"// a comment", "Expecting value"),
    "python's None": (b'{"question": "q", "answer": None}', "Expecting value"),
    "python's True": (b'{"question": "q", "answer": True}', "Expecting value"),
    "NaN": (b'{"question": "q", "answer": NaN}', "NaN is not"),
    "Infinity": (b'{"question": "q", "answer": Infinity}', "Infinity is not"),
    "-Infinity": (b'{"question": "q", "answer": -Infinity}', "-Infinity is not"),
    "1e999": (b'{"question": "q", "answer": 1e999}', "too large"),
    "5,000 digits": (b'{"question": "q", "answer": ' + b"7" * 5000 + b"}", "digits"),
    "leading zero": (b'{"question": "q", "answer": 007}', "Expecting ',' delimiter"),
    "key twice": (b'{"question": "q", "answer": "a", "answer": "b"}', '"answer" stands twice'),
    "key twice, inside": (b'{"question": {"a": 1, "a": 2}}', '"a" stands twice'),
    "latin-1": (b'{"question": "caf\xe9", "answer": "a"}', "not UTF-8"),
    "half a character": (b'{"question": "\xe2\x82", "answer": "a"}', "not UTF-8"),
    "overlong encoding": (b'{"question": "\xc0\xaf", "answer": "a"}', "not UTF-8"),
    "surrogate in bytes": (b'{"question": "\xed\xa0\x80"}', "not UTF-8"),
    "lone surrogate": (b'{"question": "\\ud83d", "answer": "a"}', "surrogate"),
    "low surrogate": (b'{"question": "\\udE00", "answer": "a"}', "surrogate"),
    "surrogate in a key": (b'{"\\ud800": "q"}', "surrogate"),
    "tab in a text": (b'{"question": "a\tb"}', "control character"),
    "zero byte": (b'{"question": "a\x00b"}', "control character"),
    "only zero bytes": (b"\x00" * 40, "Expecting value"),
    "bad escape": (b'{"question": "\\x41"}', "escape"),
    "bad unicode escape": (b'{"question": "\\u12G4"}', "escape"),
    "a list": (b'["q", "a"]', "found a list"),
    "a text": (b'"question"', "found text"),
    "a number": (b"42", "found a number"),
    "null": (b"null", "found null"),
    "true": (b"true", "found true"),
    "nested too deeply": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "byte order mark inside": (b' \xef\xbb\xbf{"question": "q"}', "Expecting value"),
    "closing brace missing": (b'{"question": {"a": "b"}', "Expecting ',' delimiter"),
    "brace too many": (b'{"question": "q", "answer": "a"}}', "text after"),
    "csv": (b"q,a", "Expecting value"),
    "conflict marker": (b"<<<<<<< HEAD", "Expecting value"),
}  # fmt: skip


class Broken(NamedTuple):
    """A file that is faulty as a whole: its name, its bytes, the line and the reason to name."""

    name: str
    content: bytes
    line: int
    reason: str


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _table(*records: bytes, header: bytes = b"question,answer") -> bytes:
    return b"\n".join([header, b"q0,a0", *records, b"q1,a1", b""])


def _whole_lines(archive: bytes) -> int:
    """How many lines can be read out of an archive that is cut off."""
    return zlib.decompressobj(31).decompress(archive).count(b"\n")


MANY = b"\n".join(GOOD * 500)
CUT = _zipped(MANY)[:-200]
FILES: dict[str, Broken] = {
    "a list that is cut off": Broken("a.json", b'[{"a": 1}, {"a": 2}', 1, "never closed"),
    "a comma before the end": Broken("a.json", b'[\n{"a": 1},\n]', 2, "comma before the end"),
    "text after a list": Broken("a.json", b'[\n{"a": 1}\n]\nmore', 4, "text after the end"),
    "a fault on a single line": Broken("a.json", b'[{"a": oops}, {"a": 2}]', 1, "nothing after"),
    "only an opening bracket": Broken("a.json", b"[", 1, "never closed"),
    "cut off in a key": Broken("a.json", b'[\n{"a": 1},\n{"b"', 3, "nothing after it"),
    "UTF-16": Broken("a.json", '[{"a": 1}]'.encode("utf-16"), 1, "UTF-16"),
    "UTF-16 lines": Broken("a.jsonl", MANY.decode().encode("utf-16"), 1, "UTF-16"),
    "latin-1 in a list": Broken("a.json", b'[\n{"a": "\xff"}]', 2, "not UTF-8"),
    "numbers in a list": Broken("a.json", b'[\n{"a": 1},\n7]', 3, "found a number"),
    "nulls in a list": Broken("a.json", b'[\n{"a": 1},\nnull]', 3, "found null"),
    "one text": Broken("a.json", b'"all of it"', 1, "found text"),
    "NaN in a list": Broken("a.json", b'[\n{"a": 1},\n{"a": NaN}]', 3, "NaN is not"),
    "one field": Broken("a.csv", _table(b"q"), 3, "1 fields, the header has 2"),
    "three fields": Broken("a.csv", _table(b"q,a,more"), 3, "3 fields, the header has 2"),
    "text after a quote": Broken("a.csv", _table(b'"q"x,a'), 3, "not CSV"),
    "latin-1 in a table": Broken("a.csv", _table(b"caf\xe9,a"), 3, "not UTF-8"),
    "an open quote": Broken("a.csv", _table(b'q,"a'), 3, "not CSV"),
    "a zero byte in a table": Broken("a.csv", _table(b"q\x00,a,b"), 3, "fields"),
    "a table in UTF-16": Broken("a.csv", _table().decode().encode("utf-16"), 1, "UTF-16"),
    "tabs and a missing field": Broken("a.tsv", b"question\tanswer\nq\ta\nq\n", 3, "1 fields"),
    "a column twice": Broken("a.csv", _table(header=b"answer,answer"), 1, "stands twice"),
    "an archive that is cut off": Broken(
        "a.jsonl.gz", CUT, _whole_lines(CUT) + 1, "cannot be read"
    ),
    "an archive that is none": Broken("a.jsonl.gz", b"PK\x03\x04", 1, "cannot be read"),
    "an archive with a bad sum": Broken(
        "a.jsonl.gz", _zipped(MANY)[:-8] + b"\0" * 8, 4500, "cannot be read"
    ),
    "a list in a cut archive": Broken("a.json.gz", _zipped(MANY)[:90], 1, "cannot be read"),
    "a text that is not UTF-8": Broken("a.txt", b"one\ncaf\xe9", 2, "not UTF-8"),
    "no Parquet file": Broken("a.parquet", b"PAR1 no", 0, "not a readable Parquet file"),
}  # fmt: skip


def _chat(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def _turn(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED, ANSWERED = _turn("user", "hello"), _turn("assistant", "world")


def _calls(*calls: Any) -> dict[str, Any]:
    return _chat(ASKED, {"role": "assistant", "content": None, "tool_calls": list(calls)})


def _tools(tools: Any) -> dict[str, Any]:
    return _chat(ASKED, ANSWERED, tools=tools)


# name -> (the row, what must be said); "dropped" marks rows that are sound and teach nothing
CHATS: dict[str, tuple[Any, str]] = {
    "no messages": ({"text": "hello"}, 'the column "messages" is missing'),
    "misspelt column": ({"mesages": [ASKED, ANSWERED]}, 'the column "messages" is missing'),
    "messages null": ({"messages": None}, '"messages" is null'),
    "messages a number": ({"messages": 3}, "must be a list of turns"),
    "messages an object": ({"messages": ASKED}, "must be a list of turns"),
    "messages true": ({"messages": True}, "must be a list of turns"),
    "messages empty": ({"messages": []}, "must be a list of turns"),
    "messages as bad JSON": ({"messages": "[{]"}, "messages is not JSON"),
    "messages as JSON and more": ({"messages": "[] x"}, "text after its end"),
    "turns as texts": (_chat("hello", "world"), "messages[0] is text, expected an object"),
    "a turn null": (_chat(ASKED, None, ANSWERED), "messages[1] is null"),
    "a turn a list": (_chat(ASKED, [ANSWERED]), "messages[1] is a list"),
    "no role": (_chat({"content": "hello"}, ANSWERED), 'messages[0] has no "role"'),
    "a misspelt role": (_chat({"rolle": "user", "content": "a"}), 'messages[0] has no "role"'),
    "role null": (_chat(_turn(None, "hello"), ANSWERED), 'has no "role"'),
    "role a number": (_chat(_turn(1, "hello"), ANSWERED), "unknown role '1'"),
    "an unknown role": (_chat(_turn("usr", "hello"), ANSWERED), "unknown role 'usr'"),
    "a role in capitals": (_chat(_turn("User", "hello"), ANSWERED), "unknown role 'User'"),
    "content null": (_chat(ASKED, _turn("assistant", None)), "is null, expected text"),
    "no content": (_chat(ASKED, {"role": "assistant"}), "is null, expected text"),
    "content a number": (_chat(ASKED, _turn("assistant", 42)), "is the number 42"),
    "content true": (_chat(ASKED, _turn("assistant", True)), "is true, expected text"),
    "content an object": (_chat(ASKED, _turn("assistant", {"a": 1})), "is an object"),
    "an image": (_chat(_turn("user", [{"type": "image", "url": "x"}]), ANSWERED), "not text"),
    "a number among texts": (_chat(_turn("user", ["a", 1]), ANSWERED), "not text"),
    "a call without name": (_calls({"arguments": {}}), "needs a name"),
    "a call that is text": (_calls("f(x)"), "needs a name"),
    "a call's arguments a list": (
        _calls({"name": "f", "arguments": [1]}), "the arguments of f are no object",
    ),
    "a call's arguments broken": (
        _calls({"name": "f", "arguments": "{x: 1}"}), "the arguments of f is not JSON",
    ),
    "calls that are no list": (
        _chat(ASKED, _turn("assistant", "a", tool_calls="f")), "must be a list",
    ),
    "tools a number": (_tools(3), '"tools" must be a list'),
    "tools as texts": (_tools(["f"]), "must hold objects"),
    "tools as bad JSON": (_tools("[{"), "tools is not JSON"),
    "system a number": (_chat(ASKED, ANSWERED, system=5), "expected text"),
    "a surrogate in a call": (
        _calls({"name": "f", "arguments": '{"a": "\\ud800"}'}), "surrogate",
    ),
    "only a question": (_chat(ASKED), "dropped: no assistant turn"),
    "only a system text": (_chat(_turn("system", "Be brief.")), "dropped: no assistant turn"),
    "an empty answer": (_chat(ASKED, _turn("assistant", "")), "dropped: the assistant turn is"),
    "an answer of spaces": (_chat(ASKED, _turn("assistant", " \n")), "dropped: the assistant"),
    "an empty question": (_chat(_turn("user", ""), ANSWERED), "dropped: the user turn is empty"),
    "a question of spaces": (_chat(_turn("user", "\t"), ANSWERED), "dropped: the user turn is"),
}  # fmt: skip
PAIR = {"instruction": "hello", "input": "", "output": "world"}
PAIRS: dict[str, tuple[Any, str]] = {
    "no output": ({"instruction": "a", "input": ""}, 'the column "output" is missing'),
    "no instruction": ({"output": "a"}, 'the column "instruction" is missing'),
    "output null": ({**PAIR, "output": None}, '"output" is null'),
    "output a number": ({**PAIR, "output": 7}, "is the number 7"),
    "output false": ({**PAIR, "output": False}, "is false, expected text"),
    "output an object": ({**PAIR, "output": {}}, "is an object, expected text"),
    "instruction null": ({**PAIR, "instruction": None}, '"instruction" is null'),
    "instruction a number": ({**PAIR, "instruction": 1.5}, "is the number 1.5"),
    "input a number": ({**PAIR, "input": 3}, "is the number 3"),
    "history of texts": ({**PAIR, "history": ["a"]}, "must be a pair"),
    "history of triples": ({**PAIR, "history": [["a", "b", "c"]]}, "must be a pair"),
    "history of numbers": ({**PAIR, "history": [[1, 2]]}, "is the number 1"),
    "history a text": ({**PAIR, "history": "a"}, "must be a list"),
    "an empty output": ({**PAIR, "output": ""}, "dropped: the assistant turn is empty"),
    "an output of spaces": ({**PAIR, "output": "  "}, "dropped: the assistant turn is empty"),
    "an empty instruction": ({**PAIR, "instruction": ""}, "dropped: the user turn is empty"),
}
TEXT = {"text": "hello world"}
TEXTS: dict[str, tuple[Any, str]] = {
    "no text": ({"txt": "a"}, '"text" is null, expected text'),
    "text null": ({"text": None}, '"text" is null, expected text'),
    "text a number": ({"text": 4}, "is the number 4"),
    "text a list": ({"text": ["a"]}, "is a list, expected text"),
    "an empty text": ({"text": ""}, "dropped: the text is empty"),
    "a text of spaces": ({"text": " \n "}, "dropped: the text is empty"),
}
ROWS: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, str]]]] = {
    "chat": (_chat(ASKED, ANSWERED), CHATS),
    "pair": (PAIR, PAIRS),
    "text": (TEXT, TEXTS),
}
"""By format: a good row, and the bad ones."""
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
"""The chat template that the rows are rendered by."""


def jsonl(*rows: Any) -> bytes:
    """Rows as lines."""
    out = io.StringIO()
    for row in rows:
        out.write(json.dumps(row) + "\n")
    return out.getvalue().encode()
