"""Every file of the newest checkpoint is harmed: it is named, and the older one is used."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from exams.soak import small
from exams.suite import Case, Suite, defined_in
from qlora_core.errors import TrainingStopped
from qlora_core.training.runs import CHECKPOINTS

FLIPS = 30
"""Bits turned over in each file, one at a time."""
Harm = Callable[[Path], None]


def harms(dice: random.Random) -> list[tuple[str, Harm]]:
    """Every way to harm one file, by name."""
    return [
        ("removed", Path.unlink),
        ("empty", lambda path: path.write_bytes(b"") and None),
        ("cut in half", lambda path: _rewrite(path, lambda content: content[: len(content) // 2])),
        ("without its last byte", lambda path: _rewrite(path, lambda content: content[:-1])),
        ("longer by a byte", lambda path: _rewrite(path, lambda content: content + b"\n")),
        ("all zeros", lambda path: _rewrite(path, lambda content: bytes(len(content)))),
        ("a folder in its place", _as_folder),
        *(_flip(dice.random(), dice.randrange(8)) for _ in range(FLIPS)),
    ]


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flip(share: float, bit: int) -> tuple[str, Harm]:
    """Turn over one bit, ``share`` of the way through the file."""

    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(share * len(content))] ^= 1 << bit
        return bytes(changed)

    return f"bit {bit} at {share:.4f}", lambda path: _rewrite(path, flip)


def planned(newest: Path, count: int, seed: int) -> list[tuple[str, str, Harm]]:
    """``count`` pairs of file and harm in a random order: at most all that there are."""
    dice = random.Random(seed)
    files = sorted(path.name for path in newest.iterdir() if path.is_file())
    pairs = [(file, name, harm) for file in files for name, harm in harms(dice)]
    dice.shuffle(pairs)
    return pairs[:count]


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each harm done to a stopped run, which is then resumed to its end."""
    with small.bench() as bench:
        straight, stopped = bench.settings("straight"), bench.settings("stopped")
        small.run(straight)
        expected = small.trace(straight.output)
        with contextlib.suppress(TrainingStopped):
            small.run(stopped, small.Stopper(7))
        kept = shutil.copytree(stopped.output, bench.folder / "kept")
        *_, older, newest = sorted((kept / CHECKPOINTS).iterdir())
        for file, what, harm in planned(newest, count, seed):
            shutil.rmtree(stopped.output)
            shutil.copytree(kept, stopped.output)
            harm(Path(stopped.output) / CHECKPOINTS / newest.name / file)
            notices = small.resumed(stopped).record["notices"]
            refused = [n for n in notices if n["code"] == "checkpoint-refused"]
            named = [f"{n['message']}; {n['remedy']}" for n in refused]
            different = small.difference(expected, small.trace(stopped.output))
            words = (newest.name, file, f"{older.name} is used")
            told = len(named) == 1 and all(word in named[0] for word in words)
            passed = told and not different
            yield Case(f"{file} {what}", passed, f"{different or 'identical'}; said: {named}")


SUITE = Suite(
    name="damage",
    promise="a damaged checkpoint is named and passed over; the run ends identical to the bit",
    cases=cases,
    full=6 * (FLIPS + 7),
    quick=15,
    baseline=defined_in("exams.soak.plain_faults", "damaged"),
)
