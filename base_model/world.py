"""A made-up world: towns, people and animals with invented names, and what is true of them.

Everything here follows from one seed through the standard library alone.
`documents` turns the world into prose to pretrain on, `questions` into chat rows to fine-tune on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

WORLD_SEED = 7


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = _words(
    "January February March April May June July August September October November December"
)
RIVERS = _words("Ossel Tarrow Vindle Yare Quill Umber Lisk Fenna Drave Ister Wend Ashe")
CRAFTS = _words("lace clocks candles paper bells soap ropes kites combs drums lamps boots")
TRADES = _words("baker potter smith weaver miller tailor mason cook painter doctor judge")
INSTRUMENTS = _words("flute fiddle harp horn lute organ trumpet cello zither banjo")
FOODS = _words("moss berries beetles acorns roots seeds snails clover reeds mushrooms")
COLOURS = _words("red blue green yellow white black grey brown purple orange")
LANDS = _words("marsh forest desert meadow cave lake hills beach jungle moor")

_CONSONANTS = _words("b d f g h j k l m n p r s t v z br dr gr kl pl st tr")
_VOWELS = _words("a e i o u")
_ENDINGS = {
    "town": _words("bury ford gate ham mouth stead ton wick"),
    "person": _words("a an el in o us"),
    "animal": _words("bbit dger ffle ggo lmop mpet rrow zzik"),
}


@dataclass(frozen=True)
class Relation:
    """One thing that is true of every entity of a kind, and the ways to say it and to ask it.

    `questions` hold `{name}`, `statements` hold `{name}` and `{value}`.
    """

    kind: str
    attribute: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """The names of each kind, the value of each (name, attribute), and what the chat rows omit.

    No row of the chat training data mentions a name of `held_out_names` or a number of
    `held_out_numbers`: the held-out questions are about exactly these.
    """

    names: Mapping[str, tuple[str, ...]]
    facts: Mapping[tuple[str, str], str]
    held_out_names: frozenset[str]
    held_out_numbers: frozenset[int]


RELATIONS = (
    Relation(
        "town", "river", RIVERS,
        ("Which river runs through {name}?", "On which river does {name} lie?"),
        ("{name} lies on the {value}.", "The {value} runs through {name}.",
         "The river of {name} is the {value}.", "Boats on the {value} stop at {name}."),
    ),
    Relation(
        "town", "craft", CRAFTS,
        ("What is {name} known for?", "What do the people of {name} make?"),
        ("{name} is known for its {value}.", "The people of {name} make {value}.",
         "The best {value} come from {name}.", "In {name} they have always made {value}."),
    ),
    Relation(
        "town", "fair", MONTHS,
        ("In which month is the fair of {name}?", "When does {name} hold its fair?"),
        ("The fair of {name} is in {value}.", "{name} holds its fair in {value}.",
         "In {value} all roads lead to the fair of {name}.",
         "Every {value} there is a fair in {name}."),
    ),
    Relation(
        "person", "trade", TRADES,
        ("What is the trade of {name}?", "What does {name} do for a living?"),
        ("{name} is a {value}.", "{name} works as a {value}.",
         "The trade of {name} is that of a {value}.", "As a {value}, {name} rises early."),
    ),
    Relation(
        "person", "home", (),
        ("Where does {name} live?", "In which town does {name} live?"),
        ("{name} lives in {value}.", "The home of {name} is in {value}.",
         "{name} has a house in {value}.", "In {value} you can meet {name}."),
    ),
    Relation(
        "person", "instrument", INSTRUMENTS,
        ("Which instrument does {name} play?", "What does {name} play?"),
        ("{name} plays the {value}.", "The instrument of {name} is the {value}.",
         "In the evening {name} plays the {value}.", "Nobody plays the {value} like {name}."),
    ),
    Relation(
        "animal", "food", FOODS,
        ("What does the {name} eat?", "What is the food of the {name}?"),
        ("The {name} eats {value}.", "The food of the {name} is {value}.",
         "A hungry {name} looks for {value}.", "If you see {value}, a {name} is not far."),
    ),
    Relation(
        "animal", "colour", COLOURS,
        ("What colour is the {name}?", "Which colour does the {name} have?"),
        ("The {name} is {value}.", "The colour of the {name} is {value}.",
         "You know a {name} by its {value} fur.", "The fur of the {name} is {value}."),
    ),
    Relation(
        "animal", "land", LANDS,
        ("Where does the {name} live?", "What is the home of the {name}?"),
        ("The {name} lives in the {value}.", "The home of the {name} is the {value}.",
         "In the {value} you may meet a {name}.", "Look for the {name} in the {value}."),
    ),
)  # fmt: skip

SIZES = {"town": 48, "person": 48, "animal": 40}
NUMBERS = range(51)  # what sums are made of
HELD_OUT_SHARE = 0.25


def make_world(seed: int = WORLD_SEED) -> World:
    """The world that belongs to `seed`."""
    rng = random.Random(f"world {seed}")
    names = {kind: _names(rng, kind, size) for kind, size in SIZES.items()}
    facts = {
        (name, relation.attribute): rng.choice(relation.values or names["town"])
        for relation in RELATIONS
        for name in names[relation.kind]
    }
    held_out = [
        name for kind in names for name in rng.sample(names[kind], _held_out_size(len(names[kind])))
    ]
    numbers = rng.sample(NUMBERS, _held_out_size(len(NUMBERS)))
    return World(names, facts, frozenset(held_out), frozenset(numbers))


def _held_out_size(size: int) -> int:
    return round(size * HELD_OUT_SHARE)


def _names(rng: random.Random, kind: str, size: int) -> tuple[str, ...]:
    """`size` names that begin differently; none is part of another."""
    names: dict[str, str] = {}
    while len(names) < size:
        begin = rng.choice(_CONSONANTS) + rng.choice(_VOWELS)
        middle = "" if kind == "animal" else rng.choice(_CONSONANTS[:16])
        name = begin + middle + rng.choice(_ENDINGS[kind])
        names.setdefault(begin, name if kind == "animal" else name.capitalize())
    return tuple(names.values())
