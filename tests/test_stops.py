"""A fine-tuned model stops by itself, even where pad and EOS are one token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import qlora_base
from qlora_base.evaluate import chat_accuracy
from qlora_base.questions import read_questions

from qlora_core import TrainSettings, load, train
from qlora_core.training.progress import Silent


@pytest.mark.slow
def test_it_stops_in_99_of_100_generations_with_pad_set_to_eos(tmp_path: Path) -> None:
    """Trainers that mask labels by the pad token's id never learn the end, and never stop."""
    model = tmp_path / "base"
    shutil.copytree(qlora_base.MODEL, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    output = tmp_path / "run"
    train(
        TrainSettings(
            model=str(model), data=str(qlora_base.TRAINING_ROWS), output=str(output),
            max_steps=300, batch_size=16, gradient_accumulation=1, learning_rate=1e-3, warmup=10,
            max_length=128, sample_prompts=0,
        ),
        progress=Silent(),
    )  # fmt: skip
    base, tokenizer = load(model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    adapted = peft.PeftModel.from_pretrained(base, str(output / "adapter"))
    result = chat_accuracy(adapted, tokenizer, read_questions(qlora_base.HELD_OUT_ROWS)[:100])
    stopped = sum(sample.stopped for sample in result.samples)
    print(f"{stopped} of {result.total} generations stopped by themselves")
    assert stopped >= 99
