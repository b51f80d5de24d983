"""Is what we train what plain transformers and PEFT train? The same rows, settings and model.

python benchmarks/parity.py MODEL DATA [DATA ...] [--steps 150] [--output results/parity.json]

Ours is `qlora-core train` as anyone runs it. Theirs is transformers' Trainer on a PEFT model with
a BitsAndBytesConfig, on the very same samples. bitsandbytes' CPU repacking is switched off on both
sides. Both adapters are then loaded into plain transformers + PEFT and judged by the same code:
mean loss over the learned tokens of the held-out rows.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from qlora_core import TrainSettings, collator, detect, train
from qlora_core.data.prepare import prepare_data
from qlora_core.data.tokenizer import load_tokenizer
from qlora_core.training.optimizers import warmup_steps

RANK, RATE = 16, 1e-3


def plain_model(path: str) -> Any:
    """What a user of transformers loads."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=quantization, dtype=torch.bfloat16
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def lora_of(targets: Any) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets
    )


def plain_training(
    settings: TrainSettings, targets: Any, rows: list[Any], collate: Any, output: str
) -> None:
    """The same training in transformers' Trainer on a PEFT model."""
    torch.manual_seed(settings.seed)
    model = plain_model(settings.model)
    model = get_peft_model(model, lora_of(targets))
    model.config.use_cache = False
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps(settings.warmup, settings.max_steps or 0),
        weight_decay=0.0,
        max_grad_norm=settings.max_gradient_norm,
        optim="adamw_torch",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=50,
    )
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(output)


def judged(path: str, adapter: str | None, rows: list[Any], collate: Any) -> float:
    """Mean loss over learned tokens, in plain transformers + PEFT."""
    model = plain_model(path)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return mean_loss(model, rows, collate)


@torch.no_grad()
def mean_loss(model: Any, rows: list[Any], collate: Any) -> float:
    """Mean loss over learned tokens by the model's own forward; leaves it in evaluation."""
    model.eval()
    total, count = 0.0, 0
    for at in range(0, len(rows), 8):
        batch = {k: v.to(model.device) for k, v in collate(rows[at : at + 8]).items()}
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum"
        )
        total += float(loss)
        count += int((labels != -100).sum())
    return total / count


def compare(model: str, data: str, steps: int, seed: int, folder: str) -> dict[str, Any]:
    ours, theirs = f"{folder}/ours", f"{folder}/theirs"
    settings = TrainSettings(
        model=model, data=data, output=ours, max_steps=steps, seed=seed, rank=RANK,
        learning_rate=RATE, batch_size=8, gradient_accumulation=1, max_length=512,
        eval_split=0.1, sample_prompts=0,
    )  # fmt: skip
    detection = detect(model)
    tokenizer = load_tokenizer(model, detection.architecture)
    prepared = prepare_data(settings, tokenizer, detection.architecture)
    rows = [{k: s[k] for k in ("input_ids", "labels")} for s in prepared.train]
    held_out = [{k: s[k] for k in ("input_ids", "labels")} for s in prepared.evaluation]
    random.Random(seed).shuffle(held_out)
    collate = collator(tokenizer)
    began = time.perf_counter()
    run = train(settings)
    between = time.perf_counter()
    plain_training(settings, detection.targets.target_modules, rows, collate, theirs)
    ended = time.perf_counter()
    before = judged(model, None, held_out, collate)
    loss = {
        name: judged(model, adapter, held_out, collate)
        for name, adapter in (("ours", f"{ours}/adapter"), ("plain", theirs))
    }
    return {
        "data": Path(data).name,
        "rows": len(rows),
        "held_out": len(held_out),
        "steps": steps,
        "seed": seed,
        "loss_before": before,
        "loss_ours": loss["ours"],
        "loss_plain": loss["plain"],
        "ratio": loss["ours"] / loss["plain"],
        "loss_ours_as_reported": run.record["evaluation"]["after"],
        "seconds_ours": between - began,
        "seconds_plain": ended - between,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    table = []
    for data in arguments.data:
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                row = compare(arguments.model, data, arguments.steps, seed, folder)
            table.append(row)
            print(json.dumps(row, indent=1), flush=True)
    print(f"\n{'data':<36}{'before':>8}{'ours':>9}{'plain':>9}{'ours/plain':>12}")
    for row in table:
        losses = f"{row['loss_before']:>8.4f}{row['loss_ours']:>9.4f}{row['loss_plain']:>9.4f}"
        print(f"{row['data']:<36}{losses}{row['ratio']:>12.4f}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
