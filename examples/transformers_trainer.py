"""transformers' Trainer with our parts: detection, NF4 loading, adapters, masks, collator.

python examples/transformers_trainer.py MODEL DATA.jsonl OUTPUT [STEPS]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from transformers import Trainer, TrainingArguments

import qlora_core


def main(model_path: str, data: str, output: str, steps: int = 20) -> None:
    model, tokenizer = qlora_core.load(model_path)
    model = qlora_core.attach(model, rank=8)  # verified: exactly the family's layers
    model.print_trainable_parameters()
    rows = [
        {"input_ids": encoded.input_ids, "labels": encoded.labels}
        for encoded in (
            qlora_core.encode_conversation(tokenizer, row["messages"])
            for row in Dataset.from_json(data)
        )
    ]
    trainer = Trainer(
        model=model,
        train_dataset=rows,
        data_collator=qlora_core.collator(tokenizer),
        args=TrainingArguments(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=2e-4,
            use_cpu=model.device.type == "cpu",
            bf16=True,
            logging_steps=5,
            report_to=[],
        ),
    )
    trainer.train()
    trainer.save_model(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
