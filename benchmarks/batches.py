"""The same samples for all: lengths drawn, fixed, or those of real rows as we encode them."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Batch
from qlora_core import TrainSettings
from qlora_core.data.collate import Sample, collator
from qlora_core.data.prepare import prepare_data
from qlora_core.data.tokenizer import load_tokenizer
from qlora_core.registry.detect import installed
from qlora_core.training.losses import IGNORED

BATCH, LEARNED, LONGEST = 4, 0.4, 1024
REAL = {"gsm8k": "instruct/gsm8k_train_2k.jsonl", "alpaca": "instruct/alpaca_en_demo.json"}
LENGTHS = ("lognormal", "fixed", *REAL)


def data_folder() -> Path:
    """Real models and data: QLORA_TEST_DATA, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("QLORA_TEST_DATA", beside))
    path = path / "data" if (path / "data").is_dir() else path
    if not (path / "instruct").is_dir():
        raise SystemExit(f"no data at {path}: set QLORA_TEST_DATA to a folder with instruct/")
    return path


def make_samples(lengths: str, count: int, vocabulary: int, fixed: int = LONGEST) -> list[Sample]:
    """``count`` samples: ``lengths`` is a name of ``LENGTHS``; ``fixed`` tokens each if fixed."""
    if lengths in REAL:
        return real_samples(lengths)[:count]
    drawn = random.Random(3)
    sizes = (fixed if lengths == "fixed" else _lognormal(drawn) for _ in range(count))
    return [made_sample(size, vocabulary, drawn) for size in sizes]


def _lognormal(drawn: random.Random) -> int:
    return round(min(LONGEST, max(16, math.exp(drawn.gauss(math.log(180), 0.7)))))


def made_sample(length: int, vocabulary: int, drawn: random.Random) -> Sample:
    """Random tokens, the last 40 % learned."""
    ids = [drawn.randrange(3, vocabulary) for _ in range(length)]
    asked = round(length * (1 - LEARNED))
    return {"input_ids": ids, "labels": [IGNORED] * asked + ids[asked:]}


def real_samples(name: str) -> list[Sample]:
    """All rows in a random order that is always the same, by Llama 2's tokenizer."""
    place = data_folder()
    family = installed().architectures["llama"]
    folder = place / "tokenizers" / "llama2"
    settings = TrainSettings(
        model=str(folder), data=str(place / REAL[name]), output="not written", eval_split=0.0,
        max_length=LONGEST,
    )  # fmt: skip
    found = prepare_data(settings, load_tokenizer(folder, family), family).train
    random.Random(3).shuffle(found)
    return found


def collated(samples: list[Sample], tokenizer: Any, device: torch.device) -> list[Batch]:
    """Padded batches of ``BATCH`` samples on ``device``."""
    collate = collator(tokenizer)
    cuts = (samples[at : at + BATCH] for at in range(0, len(samples), BATCH))
    return [placed(collate(cut), device) for cut in cuts]


def placed(batch: Batch, device: torch.device) -> Batch:
    """The same batch on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}


def flattened(batch: Batch) -> Batch:
    """As transformers' DataCollatorWithFlattening lays it out."""
    real = batch["attention_mask"].bool()
    labels = batch["labels"].clone()
    labels[:, 0] = IGNORED
    places = torch.arange(real.shape[1], device=real.device).expand_as(real)
    return {
        "input_ids": batch["input_ids"][real][None], "labels": labels[real][None],
        "position_ids": places[real][None],
    }  # fmt: skip


def unpadded(batch: Batch) -> list[dict[str, list[int]]]:
    """The samples of a padded batch, for a peer's own collator."""
    lengths = sizes([batch])
    return [
        {name: batch[name][row, :length].tolist() for name in ("input_ids", "labels")}
        for row, length in enumerate(lengths)
    ]


def sizes(batches: list[Batch]) -> list[int]:
    """Real tokens of every sample."""
    found: list[Tensor] = [b["attention_mask"].sum(dim=1) for b in batches]
    return [int(length) for lengths in found for length in lengths]
