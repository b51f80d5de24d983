"""Code that comes with a model: never run, unless its very hash was given."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import qlora_base

from exams.soak.traps import canary, settle, watch
from exams.suite import Case, Suite, defined_in
from qlora_core.cli.main import main
from qlora_core.models.remote_code import code_hash

EVIL = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
{canary}
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilForCausalLM(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
ENTRIES = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"}
Write = Callable[[Path], object]


def _config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, **changes}), encoding="utf-8")


def _settings(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def _everything(folder: Path) -> None:
    _config(folder, model_type="evil", auto_map=ENTRIES, architectures=["EvilForCausalLM"])
    _settings(folder, auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]})


FOLDERS: dict[str, Write] = {
    "config and model, an unknown type": lambda f: _config(
        f, model_type="evil", auto_map=ENTRIES, architectures=["EvilForCausalLM"]),
    "config and model, a known type": lambda f: _config(f, auto_map=ENTRIES),
    "the model alone": lambda f: _config(
        f, auto_map={"AutoModelForCausalLM": ENTRIES["AutoModelForCausalLM"]}),
    "the config alone": lambda f: _config(
        f, model_type="evil", auto_map={"AutoConfig": ENTRIES["AutoConfig"]}),
    "the tokenizer": lambda f: _settings(
        f, auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]}),
    "the tokenizer, slow and fast": lambda f: _settings(
        f, auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
        tokenizer_class="EvilTokenizer"),
    "the tokenizer, by the config": lambda f: _config(
        f, auto_map={"AutoTokenizer": [None, "evil.EvilTokenizer"]}),
    "everything": _everything,
    "an image processor": lambda f: _config(
        f, auto_map={"AutoProcessor": "evil.EvilTokenizer", **ENTRIES}),
    "generation of its own": lambda f: (f / "generation_config.json").write_text(
        '{"custom_generate": "custom_generate", "trust_remote_code": true}'),
    "another repository's": lambda f: _config(
        f, model_type="evil", auto_map={"AutoConfig": "evil-owner/evil--evil.EvilConfig"}),
    "a module above": lambda f: _config(
        f, model_type="evil", auto_map={"AutoConfig": "../evil.EvilConfig"}),
    "code that nobody names": lambda _: None,
}  # fmt: skip


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each folder with each command: without the flag, with another hash, with the right one."""
    del seed
    with tempfile.TemporaryDirectory() as name, patch("builtins.input", lambda *_: "y"):
        place = Path(name)
        commands = _commands(place)
        settle(lambda: _run(commands["train --dry-run"] + ["--model", str(qlora_base.MODEL)]))
        step = max(1, len(FOLDERS) * len(commands) // count)
        for number, (what, write) in enumerate(list(FOLDERS.items())[::step]):
            folder = place / f"model-{number}"
            made(folder, write)
            for command, arguments in commands.items():
                yield _never(f"{what}, {command}", folder, _asked(arguments, folder))
                if count > len(FOLDERS) * len(commands) and command != "detect --build":
                    other = [*_asked(arguments, folder), "--trust-remote-code", "0" * 64]
                    yield _never(f"{what}, {command}, another hash", folder, other)
        yield from _allowed(place)
        yield from _network(place)


def made(folder: Path, write: Write) -> None:
    """A copy of the base model with code beside it, and what ``write`` does to point there."""
    shutil.copytree(qlora_base.MODEL, folder)
    write(folder)
    code = EVIL.format(canary=canary(folder)[1])
    for name in ("evil.py", "custom_generate/generate.py", "__init__.py", "conftest.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")


def _commands(place: Path) -> dict[str, list[str]]:
    data = place / "rows.jsonl"
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant")]
    data.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    train = ["train", "--data", str(data), "--max-steps", "1", "--sample-prompts", "0"]
    return {
        "detect --build": ["detect", "--build"],
        "train --dry-run": [*train, "--dry-run", "--output", str(place / "dry")],
        "train": train,
        "generate": ["generate", "--prompt", "hi", "--max-new-tokens", "1"],
        "quantize": ["quantize"],
    }


def _asked(arguments: list[str], folder: Path) -> list[str]:
    command = arguments[0]
    named = [str(folder)] if command in ("detect", "quantize") else ["--model", str(folder)]
    output = ["--output", f"{folder}-{command}-out"]
    needs = command == "quantize" or (command == "train" and "--output" not in arguments)
    return [command, *named, *arguments[1:], *(output if needs else [])]


def _run(command: list[str]) -> Any:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            return main(command)
        finally:
            for part in command:
                if part.endswith("-out"):
                    shutil.rmtree(part, ignore_errors=True)


def _never(name: str, folder: Path, command: list[str]) -> Case:
    found = watch(lambda: _run(command), patience=120)
    fault = found.fault(60.0)
    if not fault and found.result not in (0, 2):
        fault = f"exit code {found.result}"
    if canary(folder)[0].exists():
        fault = "the code was run"
        canary(folder)[0].unlink()
    return Case(name, not fault, fault)


def _allowed(place: Path) -> Iterator[Case]:
    """With its own hash the code runs: the canary can be seen to sing."""
    folder = place / "allowed"
    made(folder, _everything)
    shutil.rmtree(folder / "custom_generate")
    asked = ["generate", "--model", str(folder), "--architecture", "llama", "--prompt", "hi"]
    allowed = watch(lambda: _run([*asked, "--trust-remote-code", code_hash(folder)]), patience=120)
    ran = canary(folder)[0].exists()
    yield Case("allowed by its hash", ran and allowed.result == 0, f"{allowed.error or allowed}")
    canary(folder)[0].unlink(missing_ok=True)
    before = code_hash(folder)
    with (folder / "evil.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    yield _never("changed after it was read", folder, [*asked, "--trust-remote-code", before])


def _network(place: Path) -> Iterator[Case]:
    """Nothing asks the network for a local folder, whatever its config and environment want."""
    for name, changes in {
        "attention from the Hub": {"attn_implementation": "owner/kernel"},
        "attention from the Hub, as saved": {"_attn_implementation": "owner/kernel"},
        "experts from the Hub": {"experts_implementation": "owner/kernel"},
        "a base that the config names": {"_name_or_path": "owner/model"},
    }.items():
        folder = place / name.replace(" ", "-")
        shutil.copytree(qlora_base.MODEL, folder)
        _config(folder, **changes)
        asked = ["generate", "--model", str(folder), "--prompt", "hi", "--max-new-tokens", "1"]
        with patch.dict(os.environ):
            os.environ.pop("HF_HUB_OFFLINE", None)
            yield _never(f"{name}, no socket", folder, asked)


SUITE = Suite(
    "remote-code", "code that comes with a model runs only where its hash was given",
    cases, full=120, quick=20, baseline=defined_in("exams.soak.plain_inputs", "remote_code"),
)  # fmt: skip
