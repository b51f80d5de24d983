"""From data files to samples: read, recognise, check, encode, split, and account for each row."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_core.data.collate import Sample
from qlora_core.data.encode import IGNORED
from qlora_core.data.encode_rows import (
    TOO_LONG,
    DataSettings,
    Item,
    Progress,
    Reader,
    Tally,
)
from qlora_core.data.folders import holds_rows, not_read
from qlora_core.data.problems import Problems, listing
from qlora_core.data.report import SHOWN, DataReport, Warn, lengths_of
from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture

_WORTH_A_WARNING = 0.05
LISTED = 100
"""How many refused rows, and how many things that were not read, the run record names."""


@dataclass(frozen=True)
class PreparedData:
    """Samples to train and to evaluate on, and what became of every row."""

    train: list[Sample]
    evaluation: list[Sample]
    report: DataReport


def prepare_data(
    settings: DataSettings,
    tokenizer: Any,
    architecture: Architecture | None = None,
    *,
    side_file: Path | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Samples and their report, the same for the same files, settings and seed.

    ``side_file`` receives the malformed rows that ``settings.skip_bad`` leaves out;
    ``progress(done, total)`` is called now and then. Raises BadInput that lists file, line and
    reason of every malformed row, or that says why no row is left.
    """
    if settings.overlong not in ("cut", "split", "drop"):
        raise BadInput(f"overlong is {settings.overlong!r}", "choose cut, split or drop")
    if not 0 <= settings.eval_split < 1:
        raise BadInput(f"eval_split is {settings.eval_split}", "it is a share: 0.05 sets 5 % aside")
    problems, tally = Problems(side_file if settings.skip_bad else None), Tally()
    reader = Reader(settings, tokenizer, architecture, problems, tally, progress)
    try:
        train = reader.read(settings.data, ("train",))
        evaluation = []
        if settings.eval_data:
            evaluation = reader.read(settings.eval_data, ("validation", "test"))
    finally:
        problems.close()
    if not settings.skip_bad:
        problems.refuse(len({item.row for item in (*train, *evaluation)}))
    _require(train, settings.data, problems, tally)
    if settings.eval_data:
        _require(evaluation, settings.eval_data, problems, tally)
    elif settings.eval_split:
        train, evaluation = _set_aside(train, settings.eval_split, settings.seed)
    train = _without(train, evaluation, tally)
    _count_duplicates(train, tally)
    report = _report(train, evaluation, problems, tally)
    return PreparedData([i.sample for i in train], [i.sample for i in evaluation], report)


def _set_aside(items: list[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Training and evaluation samples; equal samples fall on the same side."""
    first = {item.digest: number for number, item in reversed(list(enumerate(items)))}
    distinct = sorted(first.values())
    if len(distinct) < 2:
        raise BadInput(
            "there is only one distinct sample: nothing can be set aside for evaluation",
            "set eval_split to 0, or give evaluation rows with --eval-data",
        )
    count = min(len(distinct) - 1, max(1, round(share * len(distinct))))
    chosen = set(random.Random(f"{seed}:evaluation").sample(distinct, count))
    train = [item for number, item in enumerate(items) if number not in chosen]
    return train, [items[number] for number in sorted(chosen)]


def _without(train: list[Item], evaluation: list[Item], tally: Tally) -> list[Item]:
    """The training samples that are not evaluated on, too."""
    held_out = {item.digest for item in evaluation}
    kept = [item for item in train if item.digest not in held_out] if held_out else train
    rows = {item.row for item in (*kept, *evaluation)}
    gone = {i.row: i.sample["source"] for i in train if i.row not in rows}
    for item in train:
        if item.digest in held_out:
            tally.evaluated_on.add(*item.sample["source"])
    for source in gone.values():
        tally.drop("the same sample is evaluated on", *source)
    if not kept:
        raise BadInput(
            "every training row is also an evaluation row", "give other rows with --eval-data"
        )
    return kept


def _count_duplicates(train: list[Item], tally: Tally) -> None:
    seen: set[bytes] = set()
    for item in train:
        if item.digest in seen:
            tally.duplicates.add(*item.sample["source"])
        seen.add(item.digest)


def _require(items: list[Item], source: Any, problems: Problems, tally: Tally) -> None:
    if items:
        return
    reasons = [f"  dropped: {reason}: {count}" for reason, count in tally.dropped.items()]
    reasons += [listing(problems.first, problems.count)] if problems.count else []
    remedy = "look at the rows named above" if reasons else "give a file that has rows"
    if TOO_LONG in tally.dropped:
        remedy = f"raise --max-length: the longest row has {tally.longest:,} tokens"
    raise BadInput("\n".join([f"no usable row in {source}", *reasons]), remedy)


def _report(
    train: list[Item],
    evaluation: list[Item],
    problems: Problems,
    tally: Tally,
) -> DataReport:
    ignored = not_read(tally.ignored, (file.name for file in tally.files))
    counts = [len(item.sample["input_ids"]) for item in train]
    learned = sum(label != IGNORED for item in train for label in item.sample["labels"][1:])
    return DataReport(
        files=tuple(tally.files),
        ignored=tuple(ignored[:LISTED]),
        ignored_count=len(ignored),
        formats=tally.formats,
        rows=tally.rows,
        kept=len({item.row for item in (*train, *evaluation)}),
        refused=problems.count,
        dropped=tally.dropped,
        problems=tuple(map(str, sorted(problems.first, key=lambda problem: problem[:2])[:LISTED])),
        side_file=str(problems.side_file) if problems.side_file and problems.count else None,
        cut=tally.cut,
        cut_tokens=tally.cut_tokens,
        answers_lost=tally.answers_lost,
        split=tally.split,
        duplicates=tally.duplicates,
        evaluated_on=tally.evaluated_on,
        train_samples=len(train),
        evaluation_samples=len(evaluation),
        tokens=sum(counts),
        learned_tokens=learned,
        evaluation_tokens=sum(len(item.sample["input_ids"]) for item in evaluation),
        lengths=lengths_of(counts),
        notes=tally.notes,
        warnings=tuple(_warnings(problems, tally, ignored)),
    )


def _warnings(problems: Problems, tally: Tally, ignored: list[str]) -> Iterable[Warn]:
    folders = [path for path in ignored if path.endswith("/") and holds_rows(Path(path))]
    if folders:
        yield Warn(
            "subfolders",
            f"{len(folders)} subfolders hold data files that are not read: "
            + ", ".join(folders[:SHOWN])
            + (", ..." if len(folders) > SHOWN else ""),
            "name them as well, separated by commas",
        )
    lost = problems.count + sum(count.count for count in tally.dropped.values())
    too_long = tally.dropped.get(TOO_LONG)
    if tally.cut.count or too_long:
        yield Warn(
            "overlong",
            f"{tally.cut.count:,} rows lost the start of their prompt and "
            f"{too_long.count if too_long else 0:,} their whole answer",
            f"raise --max-length as far as model and memory allow: the longest row has "
            f"{tally.longest:,} tokens",
        )
    if lost > _WORTH_A_WARNING * tally.rows:
        yield Warn(
            "many_dropped",
            f"{lost:,} of {tally.rows:,} rows are not trained on",
            "look at the reasons above before you go on",
        )
    if tally.duplicates.count:
        yield Warn(
            "duplicates",
            f"{tally.duplicates.count:,} training samples repeat an earlier one",
            "remove them unless they are meant to weigh more",
        )
