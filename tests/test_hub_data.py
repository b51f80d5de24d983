"""Data sets from the Hub, tried against a stand-in for it on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

COMMIT = "a" * 40
FILES = {
    "data/train.jsonl": b'{"question": "q0", "answer": "a0"}\n{"question": "q1", "answer": "a1"}\n',
    "data/test.jsonl": b'{"question": "held", "answer": "out"}\n',
}
READ = """
import json, sys
from qlora_core.data.rows import read_rows
from qlora_core.errors import BadInput
for source in sys.argv[1:]:
    options = {"offline": True} if source.startswith("offline:") else {}
    source = source.removeprefix("offline:")
    if source.startswith("eval:"):
        source, options["splits"] = source.removeprefix("eval:"), ("validation", "test")
    try:
        rows = read_rows(source, **options).rows
        print(json.dumps([[row.file, row.line, row.values["question"]] for row in rows]))
    except BadInput as error:
        print(json.dumps(str(error)))
"""


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub's interface as loading a data set asks for."""

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if "gated" in path:
            self.reply(403, error="GatedRepo")
        elif "mistyped" in path:
            self.reply(401, error="RepoNotFound")
        elif "/resolve/" in path:
            name = path.partition(f"{COMMIT}/")[2]
            self.reply(200 if name in FILES else 404, FILES.get(name, b""), error="EntryNotFound")
        elif "/tree/" in path:
            self.json([{"type": "file", "path": n, "size": len(c), "oid": _oid(n)}
                       for n, c in FILES.items()]
                      + [{"type": "directory", "path": "data", "oid": _oid("data")}])  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in FILES]
            self.json({"id": "owner/set", "sha": COMMIT, "siblings": siblings})

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode())

    def reply(self, code: int, content: bytes = b"", error: str = "") -> None:
        self.send_response(code)
        if code >= 400:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", f"{error}: access is restricted")
        name = self.path.partition(f"{COMMIT}/")[2]
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_oid(name)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(name: str) -> str:
    return f"{len(name):040x}"


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read(port: int, home: Path, *sources: str) -> list[Any]:
    """What reading each source gives, in a process that knows no other Hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", READ, *sources]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_read_and_what_cannot_be_says_why(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    train, test, evaluation, split, config, gated, mistyped = read(
        hub.server_port, tmp_path, "owner/set", "owner/set:test", "eval:owner/set",
        "owner/set:dev", "owner/set/main", "owner/gated", "owner/mistyped",
    )  # fmt: skip
    assert train == [["owner/set:train", 1, "q0"], ["owner/set:train", 2, "q1"]]
    assert test == evaluation == [["owner/set:test", 1, "held"]]
    assert "no split dev" in split
    assert "owner/set:train, owner/set:test" in split
    assert "'main' not found" in config
    assert "owner/gated is gated" in gated
    assert "hf auth login" in gated
    assert "owner/mistyped cannot be loaded" in mistyped
    assert "check the spelling" in mistyped


def test_text_of_a_data_set_that_is_not_utf8_is_named_by_its_row(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 4)))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"q0\xff\xfe")])
    parquet.write_table(pa.table({"question": column}), tmp_path / "made.parquet")
    monkeypatch.setitem(FILES, "data/train.parquet", (tmp_path / "made.parquet").read_bytes())
    for name in [name for name in FILES if name.endswith("jsonl")]:
        monkeypatch.delitem(FILES, name)
    (answer,) = read(hub.server_port, tmp_path / "home", "owner/set")
    assert "owner/set:train:2: the row holds bytes that are not UTF-8" in answer


def test_offline_asks_nobody_and_finds_what_is_there(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    (missing,) = read(hub.server_port, tmp_path, "offline:owner/set")
    assert "is not on this machine and the Hub cannot be reached" in missing
    assert hub.asked == []
    (first,) = read(hub.server_port, tmp_path, "owner/set")
    asked = len(hub.asked)
    assert read(hub.server_port, tmp_path, "offline:owner/set") == [first]
    assert len(hub.asked) == asked


@pytest.mark.slow  # the Hub client tries five times, with pauses
def test_a_hub_that_is_down_is_one_clear_message(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    (answer,) = read(hub.server_port, tmp_path, "owner/set")
    assert "owner/set" in answer
