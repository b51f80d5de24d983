"""How many questions a model answers: few-shot as plain text, or through its chat template.

An answer counts when the model wrote exactly the expected text and then stopped by itself:
with the end-of-turn token in the chat, with the end of the line in plain text.
Works with any causal language model and tokenizer of transformers, adapters included.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .questions import Question


@dataclass(frozen=True)
class Sample:
    """One judged answer; `stopped` says whether the model ended it within the budget."""

    question: str
    expected: str
    answer: str
    stopped: bool

    @property
    def correct(self) -> bool:
        """Whether it is the expected answer, nothing more, and ended by the model itself."""
        return self.stopped and self.answer == self.expected


@dataclass(frozen=True)
class Result:
    """What came out for a list of questions."""

    correct: int
    total: int
    samples: tuple[Sample, ...]

    @property
    def accuracy(self) -> float:
        """The share of correct answers, 0 to 1."""
        return self.correct / self.total


def chat_accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 64,
) -> Result:
    """Ask each question as a single user turn and generate greedily up to the end-of-turn token."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": one.question}], add_generation_prompt=True, tokenize=False
        )
        for one in questions
    ]
    stops = [tokenizer.eos_token_id]
    answers = _generate(model, tokenizer, prompts, stops, max_new_tokens, batch_size)
    return _judge(questions, answers)


def few_shot_accuracy(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    examples: Sequence[Question],
    *,
    shots: int = 4,
    seed: int = 0,
    max_new_tokens: int = 16,
    batch_size: int = 64,
) -> Result:
    """Ask each question as plain text after `shots` examples; the answer ends with its line."""
    rng = random.Random(seed)
    prompts = [few_shot_prompt(rng.sample(examples, shots), one.question) for one in questions]
    stops = [i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])]
    answers = _generate(
        model, tokenizer, prompts, [*stops, tokenizer.eos_token_id], max_new_tokens, batch_size
    )
    return _judge(questions, answers)


def few_shot_prompt(examples: Sequence[Question], question: str) -> str:
    """Plain text: answered examples, then the question, open at its answer."""
    answered = "".join(f"Q: {one.question}\nA: {one.answer}\n\n" for one in examples)
    return f"{answered}Q: {question}\nA:"


def _judge(questions: Sequence[Question], answers: Sequence[tuple[str, bool]]) -> Result:
    samples = tuple(
        Sample(one.question, one.answer, text.strip(), stopped)
        for one, (text, stopped) in zip(questions, answers, strict=True)
    )
    return Result(sum(sample.correct for sample in samples), len(samples), samples)


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    stops: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[tuple[str, bool]]:
    """(text before the stop token, whether there was one) per prompt, in their order."""
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers: dict[int, tuple[str, bool]] = {}
    with _ready(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = _continue(model, tokenizer, [encoded[i] for i in batch], stops, max_new_tokens)
            for index, row in zip(batch, rows, strict=True):
                end = next((at for at, token in enumerate(row) if token in stops), None)
                answers[index] = (tokenizer.decode(row[:end]), end is not None)
    return [answers[index] for index in range(len(prompts))]


def _continue(
    model: Any, tokenizer: Any, rows: list[list[int]], stops: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """The new tokens of each row, padded on the left while generating."""
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=pad,
    )
    new: list[list[int]] = output[:, width:].tolist()
    return new


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
