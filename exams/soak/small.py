"""A small run to do harm to: a two-layer model, a tokenizer of bytes, rows of sums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_core.registry.hooks import hookimpl
from qlora_core.registry.manager import PluginRecord, Registry
from qlora_core.training.progress import Silent
from qlora_core.training.runs import METRICS, Run
from qlora_core.training.schema import TrainSettings
from qlora_core.training.train import train

OBSERVERS = ("report", "tensorboard")
"""Switched off: they draw, and add seconds."""
ROWS = 22
TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes")
"""What two equal runs may differ in."""


class Trace(NamedTuple):
    """What must be equal, bit by bit, in two runs that are the same run."""

    adapter: str
    """SHA-256 of the adapter's file; empty where there is none."""
    metrics: tuple[str, ...]
    """The lines of the metrics without times: losses and norms with all their digits."""


class Stopper:
    """An observer that sends this process a signal when a step is done."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    @hookimpl
    def qlora_step_finished(self, step: dict[str, Any]) -> None:
        """Asks the run to stop after its step ``self.step``."""
        if step["step"] == self.step and "loss" in step:
            os.kill(os.getpid(), self.signum)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder with a small model and its rows."""

    folder: Path

    @property
    def model(self) -> Path:
        """The base model with its tokenizer."""
        return self.folder / "model"

    @property
    def data(self) -> Path:
        """The training rows."""
        return self.folder / "rows.jsonl"

    def settings(self, output: str, **changes: Any) -> TrainSettings:
        """Eight steps, an epoch's end among them, saved at every third."""
        given: dict[str, Any] = {
            "model": str(self.model), "data": str(self.data), "output": str(self.folder / output),
            "max_steps": 8, "rank": 4, "batch_size": 2, "gradient_accumulation": 2,
            "dropout": 0.1, "learning_rate": 1e-2, "save_every": 3, "sample_prompts": 0,
            "device": "cpu", "block": OBSERVERS, "compute_dtype": "float32",
        }  # fmt: skip
        given |= changes
        if given.get("epochs") is not None:
            given["max_steps"] = None
        return TrainSettings(**given)


@contextmanager
def bench() -> Iterator[Bench]:
    """A fresh bench; removed afterwards. One thread, as children are forked here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory(prefix="soak-") as folder:
            made = Bench(Path(folder))
            make_model(made.model)
            make_rows(made.data)
            yield made
    finally:
        torch.set_num_threads(threads)


def make_model(folder: Path, *, seed: int = 0, **changes: Any) -> None:
    """A two-layer model of random weights with a tokenizer of bytes."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257,
        "pad_token_id": 258,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape | changes)).to(torch.bfloat16)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, a start, an end and a pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_rows(path: Path, count: int = ROWS, *, seed: int = 0) -> None:
    """Questions of various lengths with their answers."""
    dice = random.Random(seed)
    rows = []
    for number in range(count):
        question = f"{'what ' * dice.randrange(5)}is {number}?"
        rows.append({"question": question, "answer": f"it is {number * number + seed}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def watched_by(*observers: object) -> Registry:
    """The installed families, and these observers alone."""
    registry = Registry.from_environment(block=OBSERVERS)
    for number, observer in enumerate(observers):
        registry.add(observer, PluginRecord(f"observer {number}", "exams", "1"))
    return registry


def run(settings: TrainSettings, *observers: object) -> Run:
    """Train in this process, silently."""
    return train(settings, registry=watched_by(*observers), progress=Silent())


def resumed(settings: TrainSettings, **changes: Any) -> Run:
    """Go on with the run in ``settings.output``."""
    return run(dataclasses.replace(settings, resume=True, **changes))


def trace(output: Path | str) -> Trace:
    """What the run in ``output`` left that must not depend on where it was stopped."""
    folder = Path(output)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else ""
    lines = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    kept = ({k: v for k, v in line.items() if k not in TIMES} for line in lines)
    return Trace(digest, tuple(json.dumps(line, sort_keys=True) for line in kept))


def difference(one: Trace, other: Trace) -> str:
    """In what two traces differ; empty where they do not."""
    if one == other:
        return ""
    if one.metrics == other.metrics:
        return "the adapters differ"
    pairs = zip(one.metrics, other.metrics, strict=False)
    first = next((f"{a} != {b}" for a, b in pairs if a != b), "one has more lines")
    return f"the metrics differ: {first}"


def edit_weights(folder: Path, name: str, edit: Callable[[torch.Tensor], object]) -> None:
    """Change one tensor of the model in ``folder``, in place."""
    path = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    edit(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
