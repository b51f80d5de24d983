"""Chat rows about the world: some to fine-tune on, and held-out ones to judge the result by.

The two share no entity and no number: whoever answers a held-out question knew the answer before
the fine-tuning, or can calculate.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .world import NUMBERS, RELATIONS, WORLD_SEED, Relation, World, make_world

SUMS_TO_TRAIN_ON = 90
SUMS_HELD_OUT = 20


@dataclass(frozen=True)
class Question:
    """A question and the one answer that counts, letter by letter."""

    question: str
    answer: str

    def row(self) -> dict[str, list[dict[str, str]]]:
        """The row of a chat data set: one user turn, one assistant turn."""
        return {
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.answer},
            ]
        }


@dataclass(frozen=True)
class Sum:
    """One small task with two numbers; `sign` is `+`, `-` or `>` (which of the two is larger)."""

    sign: str
    left: int
    right: int

    @property
    def result(self) -> int:
        """What comes out, from 0 to 99."""
        if self.sign == ">":
            return max(self.left, self.right)
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def valid(self) -> bool:
        """Whether the result has at most two digits and no sign, and the larger one is unique."""
        return 0 <= self.result <= 99 and not (self.sign == ">" and self.left == self.right)

    def ask(self, rng: random.Random) -> Question:
        """The task in words."""
        form = rng.choice(SUM_QUESTIONS[self.sign])
        return Question(form.format(left=self.left, right=self.right), str(self.result))


SUM_QUESTIONS = {
    "+": ("What is {left} plus {right}?", "How much is {left} + {right}?"),
    "-": ("What is {left} minus {right}?", "How much is {left} - {right}?"),
    ">": ("Which is larger, {left} or {right}?", "Which number is greater, {left} or {right}?"),
}


def ask_fact(rng: random.Random, world: World, relation: Relation, name: str) -> Question:
    """A question about one fact, in one of its phrasings."""
    form = rng.choice(relation.questions)
    return Question(form.format(name=name), world.facts[name, relation.attribute])


def held_out_sums(world: World, seed: int = WORLD_SEED) -> tuple[Sum, ...]:
    """The sums of the held-out questions; pretraining leaves them out too."""
    rng = random.Random(f"held-out sums {seed}")
    numbers = sorted(world.held_out_numbers)
    return tuple(
        task for sign in SUM_QUESTIONS for task in rng.sample(_sums(sign, numbers), SUMS_HELD_OUT)
    )


def held_out_questions(world: World, seed: int = WORLD_SEED) -> list[Question]:
    """Every fact about the held-out names once, and the held-out sums."""
    rng = random.Random(f"held-out questions {seed}")
    questions = [
        ask_fact(rng, world, relation, name)
        for relation in RELATIONS
        for name in world.names[relation.kind]
        if name in world.held_out_names
    ]
    questions += [task.ask(rng) for task in held_out_sums(world, seed)]
    rng.shuffle(questions)
    return questions


def training_questions(world: World, seed: int = WORLD_SEED) -> list[Question]:
    """The other facts once each, and sums of other numbers; nothing held out is mentioned."""
    rng = random.Random(f"training questions {seed}")
    questions = [
        ask_fact(rng, world, relation, name)
        for relation in RELATIONS
        for name in world.names[relation.kind]
    ]
    numbers = [number for number in NUMBERS if number not in world.held_out_numbers]
    for sign in SUM_QUESTIONS:
        tasks = [t for t in _sums(sign, numbers) if t.result not in world.held_out_numbers]
        questions += [task.ask(rng) for task in rng.sample(tasks, SUMS_TO_TRAIN_ON)]
    questions = [question for question in questions if not mentions_held_out(world, question)]
    rng.shuffle(questions)
    return questions


def mentions_held_out(world: World, question: Question) -> bool:
    """Whether question or answer contains a held-out name or a held-out number."""
    text = f"{question.question} {question.answer}"
    numbers = {int(number) for number in re.findall(r"\d+", text)}
    return bool(numbers & world.held_out_numbers) or any(
        name in text for name in world.held_out_names
    )


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file of two-turn chat rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Question(*(turn["content"] for turn in row["messages"])) for row in rows]


def write_data(folder: Path, seed: int = WORLD_SEED) -> None:
    """Write `train.jsonl` and `held_out.jsonl`: the same bytes for the same seed."""
    world = make_world(seed)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", training_questions(world, seed))
    _write(folder / "held_out.jsonl", held_out_questions(world, seed))


def _write(path: Path, questions: Iterable[Question]) -> None:
    lines = [json.dumps(question.row()) + "\n" for question in questions]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _sums(sign: str, numbers: Sequence[int]) -> list[Sum]:
    tasks = (Sum(sign, left, right) for left in numbers for right in numbers)
    return [task for task in tasks if task.valid]


if __name__ == "__main__":
    write_data(Path(__file__).parent / "data")
