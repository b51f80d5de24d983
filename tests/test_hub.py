"""Models on the Hub, tried against a stand-in on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from qlora_core.errors import QloraError
from qlora_core.models.loader import load_model
for hub_id in sys.argv[1].split():
    try:
        loaded = load_model(hub_id, device="cpu", offline="offline" in sys.argv)
    except QloraError as error:
        print(type(error).__name__, error)
    else:
        print(loaded.model.config._name_or_path, loaded.quantization.quantized.tensors)
"""
DETECT = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits 23 seconds between its six attempts
import qlora_core
from qlora_core.errors import QloraError
try:
    qlora_core.detect(sys.argv[1])
except QloraError as error:
    print(type(error).__name__, error)
"""


class StandIn(BaseHTTPRequestHandler):
    """Enough of the Hub's interface for downloads, metadata and refusals."""

    folder: Path
    size_stated: int | None = None

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if "owner/gated" in path:
            self.refuse(403, "GatedRepo")
        elif "owner/tiny" not in path:
            self.refuse(401, "RepoNotFound")
        elif path.startswith("api/"):
            answer = self.tree() if "/tree/" in path else self.metadata()
            self.send(json.dumps(answer).encode(), {}, body=body)
        else:
            self.file(path.rpartition("/")[2], body=body)

    def sizes(self) -> dict[str, int]:
        return {f.name: self.size_stated or f.stat().st_size for f in self.folder.iterdir()}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": size, "oid": name}
            for name, size in self.sizes().items()
        ]

    def metadata(self) -> dict[str, object]:
        files = [{"rfilename": name, "size": size} for name, size in self.sizes().items()]
        return {"_id": "1", "id": "owner/tiny", "sha": COMMIT, "siblings": files, "private": False}

    def file(self, name: str, *, body: bool) -> None:
        file = self.folder / name
        if not file.is_file():
            self.refuse(404, "EntryNotFound")
            return
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body=body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[StandIn]]]:
    kind = type("Hub", (StandIn,), {"folder": tiny.save("llama", tmp_path / "remote")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()


def run(script: str, endpoint: str, home: Path, *arguments: str) -> str:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_hub_id_is_downloaded_loaded_and_then_found_offline(
    hub: tuple[str, type[StandIn]], tmp_path: Path
) -> None:
    endpoint, _ = hub
    assert run(LOAD, endpoint, tmp_path / "home", "owner/tiny") == "owner/tiny 14\n"
    nowhere = "http://127.0.0.1:9"
    assert run(LOAD, nowhere, tmp_path / "home", "owner/tiny", "offline") == "owner/tiny 14\n"


def test_ids_that_are_gated_or_mistyped_or_too_large_say_what_to_do(
    hub: tuple[str, type[StandIn]], tmp_path: Path
) -> None:
    endpoint, kind = hub
    kind.size_stated = 2**50
    gated, access, mistyped, spelling, large, disk = run(
        LOAD, endpoint, tmp_path, "owner/gated owner/tinny owner/tiny"
    ).splitlines()
    assert gated.startswith("BadInput owner/gated is gated")
    assert "hf auth login" in access
    assert mistyped.startswith("BadInput owner/tinny is neither a local folder nor a Hub")
    assert "check the spelling" in spelling
    assert large.startswith("BadInput owner/tiny needs")
    assert "HF_HOME" in disk
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))


def test_an_unreachable_hub_is_no_traceback(tmp_path: Path) -> None:
    said = run(DETECT, "http://127.0.0.1:9", tmp_path, "owner/tiny")
    assert said.startswith("BadInput owner/tiny")
    assert "cannot be reached" in said or "cannot be used" in said
