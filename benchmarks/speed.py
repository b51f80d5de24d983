"""Tokens per second and memory of a step: ours, transformers with PEFT, and TRL.

python benchmarks/speed.py [--rounds 3] [--batches 1] [--vocabulary 32000] [--shape 160m]
    [--only NAME,NAME] [--no-compile] [--output FILE.json]

All contestants train rank-16 adapters on every linear layer of the same random Llama in NF4
(160m: hidden 1024, 8 layers; 1b: hidden 2048, 22 layers), on the same batches with the same
learned tokens, in one process and in turn, so that what else runs on the machine falls on all
of them. Lengths are log-normal (mean some 240, at most 1024), 40 % of the tokens are learned.
The first round warms up and is not counted. Speeds are medians over rounds of real (never
padding) tokens per second of wall clock, and of processor time per core; ratios are medians of
each round's own. Peak memory is that of the process above what it held before the step (Linux
only). Results are written after every round: a run that is stopped keeps what it has. It needs
`pip install trl`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for all alike: others may use the cores

import peft
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from qlora_core.data.collate import collator
from qlora_core.kernels import fast_layers, packing
from qlora_core.kernels.fast_layers import FastLayers
from qlora_core.kernels.head_probe import Unfit, find_head
from qlora_core.models.adapters import attach, enable_checkpointing
from qlora_core.models.loader import load_model
from qlora_core.training.losses import IGNORED, Loss, label_only_loss, learned_tokens, summed_loss
from qlora_core.training.precision import Precision
from qlora_core.training.roads import packed_loss

SHAPES = {
    "160m": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 8,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
}  # fmt: skip
COMMON = {
    "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
RANK, BATCH, LEARNED = 16, 4, 0.4
CPU = torch.device("cpu")
PRECISION = Precision(CPU, torch.bfloat16)
Batch = dict[str, Tensor]
Contestant = Callable[[list[Batch]], None]
Rounds = dict[str, list[tuple[float, float, float | None]]]


def make_model(folder: Path, vocabulary: int, shape: str = "160m") -> Any:
    """A random checkpoint in bfloat16 and a tokenizer of that many words."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, **SHAPES[shape], **COMMON)
    ).bfloat16()
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(1000)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_batches(count: int, vocabulary: int, tokenizer: Any) -> list[Batch]:
    drawn = random.Random(3)
    collate = collator(tokenizer)
    made = []
    for _ in range(count):
        samples = []
        for _ in range(BATCH):
            length = round(min(1024, max(16, math.exp(drawn.gauss(math.log(180), 0.7)))))
            ids = [drawn.randrange(3, vocabulary) for _ in range(length)]
            asked = round(length * (1 - LEARNED))
            samples.append({"input_ids": ids, "labels": [IGNORED] * asked + ids[asked:]})
        made.append(collate(samples))
    return made


def theirs(folder: Path) -> Any:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.bfloat16, device_map="cpu"
    )


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def recompute(base: Any, on: bool) -> None:
    if on:
        enable_checkpointing(base)
    else:
        base.gradient_checkpointing_disable()


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def flattened(batch: Batch) -> Batch:
    """As transformers' DataCollatorWithFlattening lays it out."""
    real = batch["attention_mask"].bool()
    labels = batch["labels"].clone()
    labels[:, 0] = IGNORED
    places = torch.arange(real.shape[1]).expand_as(real)
    return {
        "input_ids": batch["input_ids"][real][None], "labels": labels[real][None],
        "position_ids": places[real][None],
    }  # fmt: skip


def transformers_step(
    model: Any, optimizer: Any, checkpointing: bool, flat: bool, batches: list[Batch]
) -> None:
    recompute(model.get_base_model(), checkpointing)
    for batch in batches:
        with PRECISION.autocast():
            loss = model(**(flattened(batch) if flat else batch), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def our_step(
    model: Any, optimizer: Any, checkpointing: bool, loss: Loss, batches: list[Batch]
) -> None:
    recompute(model.get_base_model(), checkpointing)
    for batch in batches:
        with PRECISION.autocast():
            mean = loss(model, batch) / learned_tokens(batch)
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_hand(
    model: Any, optimizer: Any, loss: Loss, fast: FastLayers, room: float, compiled: bool,
    batches: list[Batch],
) -> None:  # fmt: skip
    """Our layers: ``room`` 0 recomputes everything, infinity nothing."""
    fast.keep_within(room, 1)
    use_compiled(fast, compiled)
    for batch in batches:
        with PRECISION.autocast():
            mean = loss(model, batch) / learned_tokens(batch)
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()


@cache
def compiled_functions(fast: FastLayers) -> Any:
    """The functions of ``fast`` compiled, once; None where nothing can be compiled."""
    try:
        print(f"compiled in {fast.compile(PRECISION.dtype):.1f} s", flush=True)
    except Unfit as reason:
        print(reason)
        return None
    return fast.elementwise.compiled


def use_compiled(fast: FastLayers, wanted: bool) -> None:
    made = compiled_functions(fast) if wanted else None
    fast.elementwise.compiled = made or {}


def trl_step(trainer: Any, optimizer: Any, batches: list[Batch]) -> None:
    for batch in batches:
        count = torch.tensor(learned_tokens(batch))
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=count)
        optimizer.step()
        optimizer.zero_grad()


def contestants(folder: Path, tokenizer: Any) -> dict[str, Contestant]:
    rows = Dataset.from_list([{"prompt": "w1 w2 ", "completion": "w3"}] * 8)
    settings = trl.SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, max_steps=1,
        use_cpu=True, bf16=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=theirs(folder), args=settings, train_dataset=rows, processing_class=tokenizer,
        peft_config=lora(),
    )  # fmt: skip
    trainer.model.train()
    if settings.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)
        trainer.model.enable_input_require_grads()
    peer = peft.get_peft_model(theirs(folder), lora()).train()
    ours = attach(load_model(folder, compute_dtype=torch.bfloat16, device="cpu").model, rank=RANK)
    parts = find_head(ours, PRECISION.autocast)
    padded, packed = label_only_loss(parts), packed_loss(parts)
    base = ours.get_base_model()
    packing.prepare(base, parts, PRECISION.autocast)
    step = partial(transformers_step, peer, optimizer_of(peer))
    own = partial(our_step, ours, optimizer_of(ours))
    fast = fast_layers.install(base, parts, PRECISION.autocast)
    ours.train()
    hand = partial(by_hand, ours, optimizer_of(ours), packed, fast)
    return {
        "TRL default": partial(trl_step, trainer, optimizer_of(trainer.model)),
        "transformers padded, recomputing": partial(step, True, False),
        "transformers flattened, recomputing": partial(step, True, True),
        "transformers padded": partial(step, False, False),
        "transformers flattened": partial(step, False, True),
        "ours --plain, recomputing": partial(own, True, summed_loss),
        "ours padded, recomputing": partial(own, True, padded),
        "ours eager, recomputing": partial(hand, 0.0, False),
        "ours eager": partial(hand, math.inf, False),
        "ours, recomputing": partial(hand, 0.0, True),
        "ours": partial(hand, math.inf, True),
    }


def measure(run: Contestant, batches: list[Batch]) -> tuple[float, float, float | None]:
    """Wall seconds, processor seconds per core, and peak bytes above the start."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    start = _memory("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    wall, processor = time.perf_counter(), time.process_time()
    run(batches)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = _memory("VmHWM")
    above = None if start is None or peak is None else peak - start
    return wall, processor / torch.get_num_threads(), above


def _memory(field: str) -> float | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return float(line.split()[1]) * 1024
    return None


def summary(found: Rounds, tokens: int) -> dict[str, dict[str, float | None]]:
    first = next(iter(found.values()))
    table = {}
    for name, rounds in found.items():
        peaks = [r[2] for r in rounds if r[2] is not None]
        base = [r[2] for r in first if r[2] is not None]
        table[name] = {
            "tokens_per_second": tokens / statistics.median(r[0] for r in rounds),
            "tokens_per_core_second": tokens / statistics.median(r[1] for r in rounds),
            "ratio": statistics.median(a[0] / b[0] for a, b in zip(first, rounds, strict=True)),
            "ratio_lowest": min(a[0] / b[0] for a, b in zip(first, rounds, strict=True)),
            "ratio_highest": max(a[0] / b[0] for a, b in zip(first, rounds, strict=True)),
            "ratio_processor": statistics.median(
                a[1] / b[1] for a, b in zip(first, rounds, strict=True)
            ),
            "peak_bytes": max(peaks) if peaks else None,
            "peak_ratio": max(peaks) / max(base) if peaks and base else None,
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--only", help="contestants by name, separated by commas")
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tokenizer = make_model(Path(place), given.vocabulary, given.shape)
        batches = make_batches(given.batches, given.vocabulary, tokenizer)
        runs = chosen(contestants(Path(place), tokenizer), given)
        found: Rounds = {name: [] for name in runs}
        for number in range(given.rounds + 1):
            for name, run in runs.items():
                seen = measure(run, batches)
                print(f"round {number} {name}: {seen[0]:.2f} s", flush=True)
                if number:
                    found[name].append(seen)
            if number and given.output:
                write(given.output, report(given, batches, found, number))
    print_table(summary(found, sum(int(b["attention_mask"].sum()) for b in batches)))


def chosen(runs: dict[str, Contestant], given: argparse.Namespace) -> dict[str, Contestant]:
    names = given.only.split(",") if given.only else list(runs)
    compiled = ("ours, recomputing", "ours")
    return {n: runs[n] for n in names if not (given.no_compile and n in compiled)}


def report(
    given: argparse.Namespace, batches: list[Batch], found: Rounds, rounds: int
) -> dict[str, Any]:
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    return {
        "tokens": tokens,
        "padded_tokens": sum(b["input_ids"].numel() for b in batches),
        "learned_tokens": sum(learned_tokens(b) for b in batches),
        "vocabulary": given.vocabulary, "shape": given.shape, "rounds": rounds,
        "threads": torch.get_num_threads(), "machine": platform.machine(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)},
        "contestants": summary(found, tokens),
    }  # fmt: skip


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def print_table(table: dict[str, dict[str, float | None]]) -> None:
    print(f"{'':36}{'tok/s':>8}{'wall':>8}{'cpu':>8}{'peak':>12}")
    for name, row in table.items():
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.0f} MiB"
        share = "" if row["peak_ratio"] is None else f"{row['peak_ratio']:6.2f}"
        print(
            f"{name:36}{row['tokens_per_second']:8.0f}{row['ratio']:7.2f}x"
            f"{row['ratio_processor']:7.2f}x{peak}{share}"
        )


if __name__ == "__main__":
    main()
