"""TRL's SFTTrainer with our parts: the right targets, a model that really is 4-bit, our masks.

python examples/trl_sft.py MODEL DATA.jsonl OUTPUT [STEPS]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import qlora_core


def main(model_path: str, data: str, output: str, steps: int = 20) -> None:
    detection = qlora_core.detect(model_path)
    print(f"{detection.architecture.name}: {detection.reason}")
    model, tokenizer = qlora_core.load(model_path)  # NF4, double-quantized, counted

    # Rows with input_ids and labels: TRL trains them as they are.
    rows = [
        {"input_ids": encoded.input_ids, "labels": encoded.labels}
        for encoded in (
            qlora_core.encode_conversation(tokenizer, row["messages"])
            for row in Dataset.from_json(data)
        )
    ]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        data_collator=qlora_core.collator(tokenizer),
        peft_config=qlora_core.lora_config(detection, rank=8),
        args=SFTConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=2e-4,
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=model.device.type == "cpu",
            bf16=True,
            logging_steps=5,
            report_to=[],
        ),
    )
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
