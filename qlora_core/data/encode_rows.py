"""Rows to samples: each one recognised, checked, encoded, and counted where it is not used."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qlora_core.data.bounded import TemplateExhausted
from qlora_core.data.collate import Sample
from qlora_core.data.columns import Columns, recognise
from qlora_core.data.conform import Message
from qlora_core.data.cut import windows_of
from qlora_core.data.encode import IGNORED, Encoded, encode_conversation, encode_text
from qlora_core.data.json_rows import Row
from qlora_core.data.notes import NO_FIT, TRUNCATED, explain
from qlora_core.data.plain_turns import encode_whole
from qlora_core.data.problems import Problems
from qlora_core.data.report import Count
from qlora_core.data.rows import SourceFile, collect_rows
from qlora_core.data.split import split_conversation
from qlora_core.data.turns import (
    Conversation,
    Malformed,
    NothingToLearn,
    conversation_of,
    text_of,
)
from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.facts.roles import listed_roles

Progress = Callable[[int, int], None]
TOO_LONG = "the answer does not fit into the maximum length"
_COUNTED_APART = (TRUNCATED, NO_FIT)


class DataSettings(Protocol):
    """What ``prepare_data`` needs to know; the training settings have all of it."""

    @property
    def data(self) -> str | Path:
        """Paths or Hub ids, separated by commas: see ``read_rows``."""

    @property
    def eval_data(self) -> str | Path | None:
        """The same, for evaluation."""

    @property
    def eval_split(self) -> float:
        """Without ``eval_data``: the share of the samples that is set aside (0: none)."""

    @property
    def columns(self) -> str | Mapping[str, str] | None:
        """``COLUMN=TARGET,...`` where the columns say too little."""

    @property
    def max_length(self) -> int | None:
        """Tokens per sample at most."""

    @property
    def overlong(self) -> str:
        """``cut`` the start of the prompt, ``split`` at the user's turns, or ``drop`` the row.

        Plain text is split or dropped.
        """

    @property
    def trusted_roles(self) -> str | None:
        """Roles, separated by commas, whose texts may hold control tokens."""

    @property
    def skip_bad(self) -> bool:
        """Leave malformed rows out instead of stopping."""

    @property
    def seed(self) -> int:
        """Decides which samples are set aside."""

    @property
    def offline(self) -> bool:
        """Never touch the network."""


class Item(NamedTuple):
    """One sample, the number of the row that it came from, and a digest of what it teaches."""

    sample: Sample
    row: int
    digest: bytes


def _item(sample: Sample, row: int, numbers: dict[int, int]) -> Item:
    """``numbers`` holds every id once: 16 bytes a token instead of 44.

    The first token has no label: it would be predicted from nothing.
    """
    sample["input_ids"] = [numbers.setdefault(i, i) for i in sample["input_ids"]]
    sample["labels"] = [IGNORED, *(numbers.setdefault(i, i) for i in sample["labels"][1:])]
    content = array("q", sample["input_ids"] + sample["labels"])
    return Item(sample, row, hashlib.blake2b(content, digest_size=16).digest())


@dataclass
class Tally:
    """The counts while they grow."""

    files: list[SourceFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, Count] = field(default_factory=dict)
    notes: dict[str, Count] = field(default_factory=dict)
    duplicates: Count = field(default_factory=Count)
    evaluated_on: Count = field(default_factory=Count)
    cut: Count = field(default_factory=Count)
    split: Count = field(default_factory=Count)
    cut_tokens: int = 0
    answers_lost: int = 0
    longest: int = 0
    rows: int = 0

    def drop(self, reason: str, file: str, line: int) -> None:
        """Count one row that is well-formed and not used."""
        self.dropped.setdefault(reason, Count()).add(file, line)

    def note(self, note: str, file: str, line: int) -> None:
        """Count something noticed about a row."""
        self.notes.setdefault(note, Count()).add(file, line)


@dataclass
class Reader:
    """Rows of one source to encoded samples; bad rows to ``problems``, the rest counted."""

    settings: DataSettings
    tokenizer: Any
    architecture: Architecture | None
    problems: Problems
    tally: Tally
    progress: Progress | None
    _number: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)
    _trusted: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._trusted = listed_roles(self.settings.trusted_roles)

    def read(self, source: str | Path, splits: tuple[str, ...]) -> list[Item]:
        """The samples of one source, in file order. Raises BadInput where no format fits."""
        before = self.problems.count
        read = collect_rows(source, self.problems, splits=splits, offline=self.settings.offline)
        self.tally.files += read.files
        self.tally.ignored += read.ignored
        self.tally.rows += len(read.rows) + self.problems.count - before
        items: list[Item] = []
        for file, group in groupby(read.rows, key=lambda row: row.file):
            self._file(file, list(group), items, len(read.rows))
        return items

    def _file(self, file: str, rows: Sequence[Row], items: list[Item], total: int) -> None:
        columns = recognise(rows, columns=self.settings.columns)
        found = dict.fromkeys(name for row in rows for name in row.values)
        used = [column.name for column in columns.columns if column.name in found]
        unused = [name for name in found if name not in used]
        self.tally.formats[file] = f"{columns.name} ({', '.join(used)})" + (
            f", not used: {', '.join(unused)}" if unused else ""
        )
        for row in rows:
            self._number += 1
            try:
                samples = self._samples(row, columns)
                items += (_item(sample, self._number, self._numbers) for sample in samples)
            except NothingToLearn as error:
                self.tally.drop(str(error), file, row.line)
            except Malformed as error:
                self.problems.add(file, row.line, str(error), row=row.values)
            except TemplateExhausted as error:  # it would be stopped in row after row
                raise BadInput(f"{file}:{row.line}: {error.problem}", error.remedy) from None
            except BadInput as error:  # the chat template refuses this conversation
                self.problems.add(file, row.line, error.problem, row=row.values)
            if self.progress is not None and self._number % 256 == 0:
                self.progress(self._number, total)

    def _samples(self, row: Row, columns: Columns) -> Iterable[Sample]:
        source = (row.file, row.line)
        if columns.columns[0].target == "text":
            return self._text(text_of(row.values, columns), source)
        conversation = conversation_of(row.values, columns)
        whole = self._encode(conversation)
        self.tally.longest = max(self.tally.longest, len(whole.input_ids) + whole.truncated)
        encoded = [whole]
        if self.settings.overlong == "split" and (whole.truncated or not whole.fits):
            encoded = self._split(conversation, source)
        for note in dict.fromkeys((*conversation.notes, *(n for e in encoded for n in e.notes))):
            if note not in _COUNTED_APART:
                self.tally.note(explain(note), *source)
        for sample in encoded:
            self._fit(sample, source)
        return [{"input_ids": e.input_ids, "labels": e.labels, "source": source} for e in encoded]

    def _split(self, conversation: Conversation, source: tuple[str, int]) -> list[Encoded]:
        """A long conversation as shorter ones. Raises NothingToLearn where none can be learned."""

        def encode(messages: list[Message]) -> Encoded:
            part = Conversation([dict(m) for m in messages], conversation.tools, conversation.notes)
            return self._encode(part)

        split = split_conversation(conversation.messages, encode)
        fitting = [sample for sample in split if sample.fits]
        usable = [sample for sample in fitting if sample.learned_tokens]
        if not usable:
            raise NothingToLearn("no token is left to learn" if fitting else TOO_LONG)
        if len(fitting) < len(split):
            self.tally.note("an answer that is longer than the maximum length", *source)
        if len(split) > 1:
            self.tally.split.add(*source)
        return usable

    def _encode(self, conversation: Conversation) -> Encoded:
        architecture, tokenizer = self.architecture, self.tokenizer
        has_template = bool(getattr(tokenizer, "chat_template", None))
        options: dict[str, Any] = {
            "prompt_format": architecture.prompt if architecture and not has_template else None,
            "policy": architecture.tokenizer if architecture else None,
            "max_length": self.settings.max_length,
            "trusted_roles": self._trusted,
        }
        return encode_whole(
            conversation,
            lambda messages, tools: encode_conversation(
                tokenizer, messages, tools=tools, **options
            ),
        )

    def _fit(self, encoded: Encoded, source: tuple[str, int]) -> None:
        """Count what was cut. Raises NothingToLearn where what is left teaches nothing."""
        if not encoded.fits:
            raise NothingToLearn(TOO_LONG)
        if encoded.truncated and self.settings.overlong == "drop":
            raise NothingToLearn("longer than the maximum length")
        if not encoded.learned_tokens:
            raise NothingToLearn("no token is left to learn")
        if encoded.truncated:
            self.tally.cut.add(*source)
            self.tally.cut_tokens += encoded.truncated
            self.tally.answers_lost += encoded.answers_lost

    def _text(self, text: str, source: tuple[str, int]) -> Iterable[Sample]:
        """A document as windows of the maximum length; no token is lost."""
        policy = self.architecture.tokenizer if self.architecture else None
        encoded = encode_text(self.tokenizer, text, policy=policy)
        for note in encoded.notes:
            self.tally.note(explain(note), *source)
        length = len(encoded.input_ids)
        size = self.settings.max_length or max(length, 1)
        self.tally.longest = max(self.tally.longest, length)
        if length > size:
            if self.settings.overlong == "drop":
                raise NothingToLearn("longer than the maximum length")
            self.tally.split.add(*source)
        windows = [
            Sample(input_ids=ids, labels=labels, source=source)
            for ids, labels in windows_of(encoded.input_ids, encoded.labels, size)
            if any(label != IGNORED for label in labels)
        ]
        if not windows:
            raise NothingToLearn("no token is left to learn")
        return windows
