"""A made-up world: towns, people and animals with invented names, and what is true of them.

Everything here follows from one seed through the standard library alone.
`documents` turns the world into prose to pretrain on, `questions` into chat rows to fine-tune on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

WORLD_SEED = 7

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
RIVERS = tuple("Ossel Tarrow Vindle Yare Quill Umber Lisk Fenna Drave Ister Wend Ashe".split())
CRAFTS = tuple("lace clocks candles paper bells soap ropes kites combs drums lamps boots".split())
TRADES = tuple("baker potter smith weaver miller tailor mason cook painter doctor judge".split())
INSTRUMENTS = tuple("flute fiddle harp horn lute organ trumpet cello zither banjo".split())
FOODS = tuple("moss berries beetles acorns roots seeds snails clover reeds mushrooms".split())
COLOURS = tuple("red blue green yellow white black grey brown purple orange".split())
LANDS = tuple("marsh forest desert meadow cave lake hills beach jungle moor".split())

_SYLLABLES = {
    "town": ("bram cal dor el fen gar hol kes lin mer nor pel ros sel tam ul wes".split(),
             "a e i o".split(),
             "bury ford gate ham low mouth stead ton wick worth".split()),
    "person": ("Ad Bel Cor Dav Em Fi Hal Is Jor Kel Lu Mi Nad Or Pet Ril Sab Tov Ur Vel".split(),
               "a e i o u".split(),
               "dan lia mar nek ra rick sa tha vin xa".split()),
    "animal": ("bl cr dr fl gl kr pl qu sn sp tr v z".split(),
               "a e i o u oo".split(),
               "bbit dger ffle ggo lmop mpet ndle ppin rrow zzik".split()),
}  # fmt: skip


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

SIZES = {"town": 80, "person": 80, "animal": 60}
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
    numbers = rng.sample(range(100), _held_out_size(100))
    return World(names, facts, frozenset(held_out), frozenset(numbers))


def _held_out_size(size: int) -> int:
    return round(size * HELD_OUT_SHARE)


def _names(rng: random.Random, kind: str, size: int) -> tuple[str, ...]:
    """`size` names; none is part of another, so that a search for a name finds that name only."""
    first, second, last = _SYLLABLES[kind]
    names: list[str] = []
    while len(names) < size:
        name = rng.choice(first) + rng.choice(second) + rng.choice(last)
        name = name if kind == "animal" else name.capitalize()
        if not any(name in known or known in name for known in names):
            names.append(name)
    return tuple(names)
