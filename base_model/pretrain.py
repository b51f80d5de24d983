"""Make the base model from nothing: `python -m qlora_base.pretrain --output DIR`.

Trains the tokenizer and a Llama-shaped decoder on `documents`, then writes a model folder as
transformers reads it, with `training_curve.json` beside the weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from .documents import documents
from .evaluate import chat_accuracy, few_shot_accuracy
from .questions import held_out_questions, training_questions
from .world import make_world

END, PAD = "<|end|>", "<|pad|>"
# Only tokens that pretraining has seen: the pieces of "Assistant" are not all among them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set role = 'response' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '### ' + role | capitalize + ':\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
VALIDATION_SEED = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, besides the world and the versions of the libraries."""

    seed: int = 0
    tokens: int = 5_000_000
    batch_size: int = 8
    length: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.03
    weight_decay: float = 0.1
    vocabulary: int = 1024
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 8

    @property
    def steps(self) -> int:
        """Optimizer steps for the budget of tokens."""
        return self.tokens // (self.batch_size * self.length)


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE with one token per digit; `<|end|>` ends documents and, in a chat, turns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(documents(recipe.seed), 10_000), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=recipe.length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The decoder with random weights; every size suits NF4 blocks of 64."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[torch.Tensor]:
    """Batches of ids [batch, length] without end; each row begins with the start of a document."""
    stream = documents(seed)
    rows: list[list[int]] = []
    row: list[int] = []
    while True:
        texts = [text + END for text in itertools.islice(stream, 1000)]
        for ids in tokenizer(texts)["input_ids"]:
            row += ids
            if len(row) >= recipe.length:
                rows.append(row[: recipe.length])
                row = []
            if len(rows) == recipe.batch_size:
                yield torch.tensor(rows)
                rows = []


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a batch [batch, length], computed under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def train(
    recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Iterator[dict[str, float]]:
    """Train in place; yields a point of the curve (mean loss of 50 steps) every 50 steps."""
    optimizers = _optimizers(recipe, model)
    started, losses = time.perf_counter(), []
    data = itertools.islice(batches(recipe, tokenizer, recipe.seed), recipe.steps)
    for step, ids in enumerate(data, 1):
        rate = recipe.learning_rate * _schedule(recipe, step)
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = rate
        loss = loss_of(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == recipe.steps:
            yield {
                "step": step,
                "tokens": step * ids.numel(),
                "loss": round(sum(losses) / len(losses), 4),
                "learning_rate": round(rate, 6),
                "seconds": round(time.perf_counter() - started, 1),
            }
            losses = []


def _optimizers(recipe: Recipe, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embeddings and the norms.

    Muon learns rare associations in fewer tokens (https://arxiv.org/abs/2509.26030); scaled to
    AdamW's update size, both share one learning rate (https://arxiv.org/abs/2502.16982).
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _schedule(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    done = step / recipe.steps
    return min(done / recipe.warmup, (1 - done) / (1 - recipe.warmup))


@torch.inference_mode()
def validation_loss(
    recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> float:
    """Mean loss of 20 batches of documents that training did not see."""
    held_out = itertools.islice(batches(recipe, tokenizer, VALIDATION_SEED), 20)
    losses = [loss_of(model, ids).item() for ids in held_out]
    return round(sum(losses) / len(losses), 4)


def save(output: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a model folder, weights in bf16."""
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def measure(output: Path) -> dict[str, float]:
    """Accuracy of the saved model on the held-out questions, few-shot and through the chat."""
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(output)
    world = make_world()
    questions = held_out_questions(world)
    few_shot = few_shot_accuracy(model, tokenizer, questions, training_questions(world))
    chat = chat_accuracy(model, tokenizer, questions)
    return {"few_shot": round(few_shot.accuracy, 4), "chat": round(chat.accuracy, 4)}


def pretrain(output: Path, recipe: Recipe) -> dict[str, Any]:
    """Make the model of `recipe` in the folder `output`; returns what goes beside its weights."""
    started = time.perf_counter()
    tokenizer = train_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    curve = []
    for point in train(recipe, model, tokenizer):
        curve.append(point)
        print(json.dumps(point), flush=True)
    loss = validation_loss(recipe, model, tokenizer)
    save(output, model, tokenizer)
    report = {
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": curve[-1]["tokens"],
        "seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "validation_loss": loss,
        "accuracy": measure(output),
        "curve": curve,
    }
    (output / "training_curve.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    """The command line: one flag per setting of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m qlora_base.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the new model")
    for name, default in asdict(Recipe()).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"default: {default}")
    settings = vars(parser.parse_args())
    report = pretrain(settings.pop("output"), Recipe(**settings))
    print(json.dumps({key: value for key, value in report.items() if key != "curve"}))


if __name__ == "__main__":
    main()
