"""The text that the base model reads: prose, lists, tables, quizzes and sums about the world.

Each fact comes in many phrasings, for every entity: this is where the model's knowledge is from.
No document has turns, roles or the chat template's headings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .questions import SUM_QUESTIONS, Question, Sum, ask_fact, held_out_sums
from .world import NUMBERS, RELATIONS, WORLD_SEED, Relation, World, make_world

QUIZ_STYLES = (
    ("Q: ", "\nA: ", "\n\n"),
    ("Q: ", "\nA: ", "\n"),
    ("Question: ", "\nAnswer: ", "\n\n"),
    ("", " ", "\n"),
    ("", "\n", "\n\n"),
    ("- ", "\n  ", "\n"),
)
SIGNS = "".join(chr(code) for code in range(33, 127))


class Writer:
    """Writes documents about one world, one after the other, from one random generator."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.avoided = {
            Sum(task.sign, *pair)
            for task in held_out_sums(world)
            for pair in ((task.left, task.right), (task.right, task.left))
        }

    def document(self) -> str:
        """One document of a random sort."""
        sorts: tuple[Callable[[], str], ...] = (
            self.quiz, self.profiles, self.statements, self.table, self.listing, self.sums,
            self.signs,
        )  # fmt: skip
        return self.rng.choices(sorts, weights=(45, 12, 12, 4, 4, 22, 1))[0]()

    def quiz(self) -> str:
        """Questions with their answers, all in one style; never a single one."""
        before, between, after = self.rng.choice(QUIZ_STYLES)
        asked = [self.question() for _ in range(self.rng.randint(4, 10))]
        return after.join(f"{before}{one.question}{between}{one.answer}" for one in asked)

    def question(self) -> Question:
        """A question about any fact, or a sum."""
        if self.rng.random() < 0.35:
            return self.sum().ask(self.rng)
        relation, name = self._fact()
        return ask_fact(self.rng, self.world, relation, name)

    def profiles(self) -> str:
        """All that is known about a few entities, one paragraph each."""
        return "\n\n".join(self._profile() for _ in range(self.rng.randint(1, 3)))

    def statements(self) -> str:
        """Facts in no order."""
        count = self.rng.randint(4, 9)
        return self.rng.choice((" ", "\n")).join(
            self._statement(*self._fact()) for _ in range(count)
        )

    def table(self) -> str:
        """A Markdown table of some entities of one kind under a heading."""
        kind = self.rng.choice(tuple(self.world.names))
        relations = [relation for relation in RELATIONS if relation.kind == kind]
        self.rng.shuffle(relations)
        head = (kind, *(relation.attribute for relation in relations))
        rows = [
            (name, *(self.world.facts[name, one.attribute] for one in relations))
            for name in self.rng.sample(self.world.names[kind], self.rng.randint(3, 7))
        ]
        lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
        marks = "#" * self.rng.randint(1, 2)
        return f"{marks} Some of the {kind}s:\n\n" + "\n".join(lines)

    def listing(self) -> str:
        """Who shares a value: the facts read backwards."""
        relation = self.rng.choice(RELATIONS)
        value = self.rng.choice(relation.values or self.world.names["town"])
        names = [
            name
            for name in self.world.names[relation.kind]
            if self.world.facts[name, relation.attribute] == value
        ]
        self.rng.shuffle(names)
        return f"{relation.attribute} of {relation.kind}: {value}\n" + ", ".join(names or ["none"])

    def sums(self) -> str:
        """Lines of arithmetic."""
        form = self.rng.choice((_as_formula, _as_words, _as_formula))
        return "\n".join(form(self.sum()) for _ in range(self.rng.randint(6, 16)))

    def sum(self) -> Sum:
        """Any sum that no held-out question asks for."""
        while True:
            sign = self.rng.choices(tuple(SUM_QUESTIONS), weights=(4, 4, 2))[0]
            task = Sum(sign, self.rng.choice(NUMBERS), self.rng.choice(NUMBERS))
            if task.valid and task not in self.avoided:
                return task

    def signs(self) -> str:
        """Every printable sign now and then, so that no embedding row of one stays untrained."""
        return " ".join(self.rng.choice(SIGNS) for _ in range(self.rng.randint(20, 60)))

    def _profile(self) -> str:
        kind = self.rng.choice(tuple(self.world.names))
        name = self.rng.choice(self.world.names[kind])
        relations = [relation for relation in RELATIONS if relation.kind == kind]
        self.rng.shuffle(relations)
        return " ".join(self._statement(relation, name) for relation in relations)

    def _statement(self, relation: Relation, name: str) -> str:
        value = self.world.facts[name, relation.attribute]
        return self.rng.choice(relation.statements).format(name=name, value=value)

    def _fact(self) -> tuple[Relation, str]:
        relation = self.rng.choice(RELATIONS)
        return relation, self.rng.choice(self.world.names[relation.kind])


def _as_formula(task: Sum) -> str:
    if task.sign == ">":
        sign = "<" if task.left < task.right else ">"
        return f"{task.left} {sign} {task.right}"
    return f"{task.left} {task.sign} {task.right} = {task.result}"


def _as_words(task: Sum) -> str:
    if task.sign == ">":
        return f"Of {task.left} and {task.right}, {task.result} is larger."
    word = "plus" if task.sign == "+" else "minus"
    return f"{task.left} {word} {task.right} is {task.result}."


def documents(seed: int, world: World | None = None) -> Iterator[str]:
    """Documents without end, the same ones for the same seed."""
    writer = Writer(world or make_world(WORLD_SEED), random.Random(f"documents {seed}"))
    while True:
        yield writer.document()
