"""Contestants in a process of their own: peers that change transformers when they are imported.

The parent writes the batches to a file and starts ``python -m benchmarks.elsewhere``; for every
line with a contestant's name the child trains once and answers with what it measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RANK, Batch, Contestant, Seen, measure

UNSLOTH = ("Unsloth, recomputing", "Unsloth")
MARK = "measured: "
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Elsewhere:
    """The parent's end."""

    def __init__(self, folder: Path, batches: list[Batch]) -> None:
        kept = folder.parent / "batches.pt"
        torch.save([{name: value.cpu() for name, value in b.items()} for b in batches], kept)
        command = [sys.executable, "-m", "benchmarks.elsewhere", str(folder), str(kept)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, name: str) -> Seen:
        """One run there. Raises RuntimeError where the child has ended."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(name + "\n")
        self.child.stdin.flush()
        for text in self.child.stdout:
            if text.startswith(MARK):
                return Seen(**json.loads(text.removeprefix(MARK)))
        raise RuntimeError(f"{name}: its process ended with {self.child.wait()}")

    def close(self) -> None:
        """End the child."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        self.child.wait(timeout=60)


def absent(device: torch.device) -> str:
    """Why Unsloth cannot take part; empty where it can."""
    if device.type != "cuda":
        return "Unsloth needs a GPU"
    return "" if find_spec("unsloth") else "Unsloth is not installed"


def unsloth_step(
    model: Any, optimizer: torch.optim.Optimizer, mode: str | bool, batches: list[Batch]
) -> None:
    """A step per batch, as Unsloth's own model computes loss and gradient."""
    import_module("unsloth").FastLanguageModel.for_training(model, use_gradient_checkpointing=mode)
    for batch in batches:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def unsloth_contestants(folder: Path) -> dict[str, Contestant]:
    """Its own loader, adapters and kernels; recomputing as it recommends, and not."""
    loader = import_module("unsloth").FastLanguageModel
    model, _ = loader.from_pretrained(
        str(folder), max_seq_length=8192, load_in_4bit=True, dtype=torch.bfloat16
    )
    model = loader.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, bias="none", target_modules=LINEAR,
        use_gradient_checkpointing="unsloth",
    )  # fmt: skip
    wanted = [p for p in model.parameters() if p.requires_grad]
    step = partial(unsloth_step, model, torch.optim.AdamW(wanted, lr=1e-4))
    return dict(zip(UNSLOTH, (partial(step, "unsloth"), partial(step, False)), strict=True))


def answer(runs: dict[str, Contestant], batches: list[Batch], say: Callable[[str], Any]) -> None:
    """The child's end: a name per line of standard input, a measurement per answer."""
    for text in sys.stdin:
        say(MARK + json.dumps(asdict(measure(runs[text.strip()], batches))))


def main() -> None:
    import_module("unsloth")  # before transformers, which it changes

    folder, kept = map(Path, sys.argv[1:])
    device = torch.device("cuda")
    batches = [{n: v.to(device) for n, v in b.items()} for b in torch.load(kept, weights_only=True)]
    answer(unsloth_contestants(folder), batches, partial(print, flush=True))


if __name__ == "__main__":
    main()
