"""Harmed configs and models with code of their own, read by transformers: the baselines."""

from __future__ import annotations

import json
import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from exams.soak import fuzz_config
from exams.soak import remote_code as ours
from exams.soak.traps import canary, settle, watch
from exams.suite import Case

MEMORY = 6 * 2**30
"""Bytes of address space beyond what this process has: a config may ask for all there is."""
PATIENCE = 10.0
REFUSALS = (OSError, ValueError, StrictDataclassError)


def configs(count: int, seed: int) -> Iterator[Case]:
    """AutoConfig on the same inputs; what it raises on purpose is taken for a clear refusal."""
    examples = fuzz_config.seeds()
    with tempfile.TemporaryDirectory() as place, _bounded_memory():
        folder = Path(place)
        settle(lambda: AutoConfig.for_model("llama"))
        for number in range(count):
            config = fuzz_config.fuzzed(random.Random(f"{seed}:{number}"), examples, folder)
            if config is not folder:
                (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            found = watch(_silent(lambda: AutoConfig.from_pretrained(folder)), patience=PATIENCE)
            refused = isinstance(found.error, REFUSALS) and not found.events
            fault = "" if refused else found.fault(fuzz_config.SECONDS)
            yield Case(f"input {number}", not fault, fault)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def remote_code(count: int, seed: int) -> Iterator[Case]:
    """The same folders opened without a flag, by someone who answers each question with y."""
    del count, seed
    roads: dict[str, Callable[[Path], Any]] = {
        "the config": AutoConfig.from_pretrained,
        "the tokenizer": AutoTokenizer.from_pretrained,
        "the model": AutoModelForCausalLM.from_pretrained,
        "generate": _generated,
    }
    with tempfile.TemporaryDirectory() as place, patch("builtins.input", lambda *_: "y"):
        for number, (what, write) in enumerate(ours.FOLDERS.items()):
            folder = Path(place) / f"model-{number}"
            ours.made(folder, write)
            for road, work in roads.items():
                watch(_silent(partial(work, folder)), patience=120)
                ran = canary(folder)[0].exists()
                canary(folder)[0].unlink(missing_ok=True)
                yield Case(f"{what}, {road}", not ran, "the code was run" if ran else "")


def _generated(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.generate(torch.tensor([[1, 2]]), max_new_tokens=1)


def _silent(work: Callable[[], Any]) -> Callable[[], Any]:
    def silent() -> Any:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return work()

    return silent
