"""Bad data: file, line and reason of every fault, and no row that is neither kept nor counted."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exams.results import ROOT
from exams.soak.bad_files import AROUND, CHAT, FAULTS, FILES, GOOD, ROWS, jsonl
from exams.suite import Case, Suite, defined_in
from qlora_core.data.prepare import prepare_data
from qlora_core.data.problems import Problems
from qlora_core.data.rows import collect_rows
from qlora_core.errors import BadInput
from qlora_core.testing.tokenizers import toy_tokenizer

SPEED = re.compile(r"([\d,]+) lines/s checked")
"""What the benchmark of validation tells."""
LATE = 200_000
"""How many good rows stand before a late one."""
LATE_ROWS = 20_000
"""The same where every row is encoded."""
ALL_FILES = 3 * len(FAULTS) + 1 + len(FILES) + 1
"""Cases of bad files: each faulty line in three places, all of them late, files, the speed."""
ALL_ROWS = 190
"""Cases of bad rows, the late ones included."""


@dataclass(frozen=True)
class Settings:
    """What the training settings know of the data."""

    data: str
    skip_bad: bool = False
    eval_data: str | None = None
    eval_split: float = 0.0
    columns: Any = None
    max_length: int | None = None
    overlong: str = "cut"
    trusted_roles: str | None = None
    seed: int = 0
    offline: bool = True


def files(count: int, seed: int) -> Iterator[Case]:
    """Each faulty line first, in the middle and last; then late; then whole files.

    The speed is measured at full count alone: what CI runs holds no clock to anything.
    """
    del seed
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "train.jsonl"
        for name, (line, reason) in FAULTS.items():
            for where, at in (("first", 0), ("middle", AROUND // 2), ("last", AROUND)):
                path.write_bytes(b"\n".join([*GOOD[:at], line, *GOOD[at:AROUND]]) + b"\n")
                yield _named(f"{name}, {where}", path, {at + 1: reason}, AROUND)
        path.write_bytes(b"\n".join([*[GOOD[0]] * LATE, *(line for line, _ in FAULTS.values())]))
        reasons = {LATE + n: reason for n, (_, reason) in enumerate(FAULTS.values(), start=1)}
        yield _named("all of them, late", path, reasons, LATE)
        for name, broken in FILES.items():
            path = Path(place) / broken.name
            path.write_bytes(broken.content)
            yield _named(name, path, {broken.line: broken.reason}, None)
    if count >= ALL_FILES:
        yield _speed()


def _speed() -> Case:
    """Every line parsed, recognised and checked turn by turn: processor seconds for 100,000.

    In a process of its own, as a run is: what other suites left behind costs a fifth.
    """
    command = [sys.executable, "-m", "benchmarks.validation"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    rate = SPEED.search(done.stdout)
    if rate is None:
        return Case("the speed", False, f"no rate was told: {done.stdout[-200:]}")
    seconds = 100_000 / int(rate[1].replace(",", ""))
    figures = {"seconds a 100,000 lines": seconds}
    return Case("the speed", seconds <= 1.0, f"{seconds:.2f} s", figures)


def _named(name: str, path: Path, reasons: dict[int, str], good: int | None) -> Case:
    """Whether each fault is told with file, line and reason, and every good row is kept."""
    problems = Problems()
    try:
        kept = len(collect_rows(path, problems).rows)
    except BadInput as error:  # no row of such a file can be read
        (line, reason), *_ = reasons.items()
        place = f"{path}:{line}" if line else str(path)
        right = place in error.problem and reason in error.problem
        return Case(name, right, "" if right else error.problem[:200])
    found = {problem.line: problem.reason for problem in problems.first}
    wrong = [
        f"line {line}: {found.get(line, 'not named')}"
        for line, reason in reasons.items()
        if not any(part in found.get(line, "") for part in reason.split("|"))
    ]
    if good is not None and (kept != good or problems.count != len(reasons)):
        wrong.append(f"{kept} of {good} good rows kept, {problems.count} refused")
    if any(problem.file != str(path) for problem in problems.first):
        wrong.append("another file is named")
    return Case(name, not wrong, "; ".join(wrong[:3]))


def rows(count: int, seed: int) -> Iterator[Case]:
    """Each bad row first, in the middle and last; then, at full count, all of a format, late."""
    del seed
    tokenizer = toy_tokenizer("byte-level", CHAT, eos_token="</s>", pad_token="<pad>")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "train.jsonl"
        for kind, (good, table) in ROWS.items():
            for name, (row, reason) in table.items():
                for where, at in (("first", 0), ("middle", 2), ("last", 4)):
                    path.write_bytes(jsonl(*[good] * at, row, *[good] * (4 - at)))
                    yield _told(f"{kind}: {name}, {where}", path, {at + 1: reason}, 4, tokenizer)
            if count < ALL_ROWS:
                continue
            path.write_bytes(jsonl(*[good] * LATE_ROWS, *(row for row, _ in table.values())))
            reasons = {LATE_ROWS + n: r for n, (_, r) in enumerate(table.values(), start=1)}
            yield _told(f"{kind}: all of them, late", path, reasons, LATE_ROWS, tokenizer)


def _told(name: str, path: Path, reasons: dict[int, str], good: int, tokenizer: Any) -> Case:
    side = path.with_name("refused.jsonl")
    side.unlink(missing_ok=True)
    report = prepare_data(Settings(str(path), True), tokenizer, side_file=side).report
    said = list(report.problems)
    said += [
        f"{place}: dropped: {why}" for why, n in report.dropped.items() for place in n.examples
    ]
    wrong = [
        f"line {line}: {[s for s in said if f':{line}:' in s]}"
        for line, reason in reasons.items()
        if not any(s.startswith(f"{path}:{line}: ") and reason in s for s in said)
    ]
    refused = [line for line, reason in reasons.items() if not reason.startswith("dropped")]
    wrong += _sums(report, side, path, {line: line in refused for line in reasons})
    if report.kept != good:
        wrong.append(f"{report.kept} of {good} good rows kept")
    stopped = _stops(path, tokenizer)
    if bool(refused) != bool(stopped):
        wrong.append("stopped without --skip-bad" if stopped else "went on without --skip-bad")
    return Case(name, not wrong, "; ".join(wrong[:3]))


def _stops(path: Path, tokenizer: Any) -> str:
    """The message that ends a run without ``--skip-bad``; empty where it goes on."""
    if path.stat().st_size > 1_000_000:
        return "not asked: it takes as long again"
    try:
        prepare_data(Settings(str(path)), tokenizer)
    except BadInput as error:
        return error.problem
    return ""


def _sums(report: Any, side: Path, path: Path, bad: dict[int, bool] | None) -> list[str]:
    """Where the numbers do not add up: rows in, kept, refused, dropped, written aside."""
    dropped = sum(count.count for count in report.dropped.values())
    written = [json.loads(line) for line in side.read_text().splitlines()] if side.exists() else []
    wrong = []
    if report.rows != report.kept + report.refused + dropped:
        wrong.append(f"{report.rows} rows = {report.kept} + {report.refused} + {dropped}?")
    if len(written) != report.refused or any(record["file"] != str(path) for record in written):
        wrong.append(f"{len(written)} rows in the side file, {report.refused} refused")
    if bad is not None and [r["line"] for r in written] != [
        n for n, is_bad in bad.items() if is_bad
    ]:
        wrong.append("the side file holds other lines")
    return wrong


def mutations(count: int, seed: int) -> Iterator[Case]:
    """Files with bytes changed, lines cut, joined, repeated or lost, of all three kinds."""
    tokenizer = toy_tokenizer("byte-level", CHAT, eos_token="</s>", pad_token="<pad>")
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            draw = random.Random(f"{seed}:{number}")
            kind = ("jsonl", "json", "csv")[number % 3]
            path = Path(place) / f"train.{kind}"
            path.write_bytes(mutated(sound_rows(kind, draw), draw))
            fault = _accounted(path, tokenizer) or (_lines(path) if kind == "jsonl" else "")
            yield Case(f"{kind} {number}", not fault, fault)


def sound_rows(kind: str, draw: random.Random) -> bytes:
    """A file of two to twelve good rows: ``jsonl``, ``json`` or ``csv``."""
    texts = [f"{draw.choice(('a', 'é', '東', ' b', '<s>'))}{n}" for n in range(draw.randint(2, 12))]
    made = [{"question": f"q{text}", "answer": text} for text in texts]
    if kind == "jsonl":
        return jsonl(*made)
    if kind == "json":
        return json.dumps(made, indent=draw.choice((None, 1)), ensure_ascii=False).encode()
    lines = [f'"q{text}","{text}"' for text in texts]
    return "\n".join(["question,answer", *lines, ""]).encode()


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The file with one to five of its places changed, lost or repeated."""
    for _ in range(draw.randint(1, 5)):
        at, size = draw.randrange(len(content) + 1), draw.randint(1, 15)
        new = draw.choice(
            (b"", b"\n", b'"', b",", b"}", b"\xff", b"\x00", b"NaN", b"null", b"\\ud800", b"\r\n",
             content[at : at + size], draw.randbytes(size))
        )  # fmt: skip
        content = content[:at] + new + content[at + draw.choice((0, 0, size)) :]
    return content


def _accounted(path: Path, tokenizer: Any) -> str:
    """Empty where every row was kept, refused or dropped, or the file was refused by name."""
    side = path.with_name("refused.jsonl")
    side.unlink(missing_ok=True)
    try:
        report = prepare_data(Settings(str(path), True), tokenizer, side_file=side).report
    except BadInput as error:
        return "" if path.name in error.problem else f"names no file: {error.problem[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    last = path.read_bytes().count(b"\n") + 1
    wrong = _sums(report, side, path, None)
    places = [p.split(": ")[0].removeprefix(f"{path}:").split(":")[0] for p in report.problems]
    wrong += [f"line {place} of {last}" for place in places if not 1 <= int(place) <= last]
    return "; ".join(wrong)


def _lines(path: Path) -> str:
    """Compare with the plain rule, written anew: a line is one sound JSON object, or it is bad."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        return ""
    filled = enumerate(content.split(b"\n"), start=1)
    lines = {n: line for n, line in filled if line.strip(b" \t\r\n")}
    problems = Problems()
    kept = {row.line for row in collect_rows(path, problems).rows}
    bad = {n for n, line in lines.items() if not is_row(line)}
    if kept != lines.keys() - bad or {problem.line for problem in problems.first} != bad:
        return f"kept {sorted(kept)}, of {sorted(lines)} are bad {sorted(bad)}"
    return ""


def is_row(line: bytes) -> bool:
    """Whether a line is one sound JSON object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if max(Counter(key for key, _ in pairs).values(), default=1) > 1:
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        value = json.loads(line.decode(), object_pairs_hook=once)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


FILES_SUITE = Suite(
    "bad-files", "every faulty file or line is refused with file, line and reason, the rest kept",
    files, full=ALL_FILES, quick=ALL_FILES - 1, alone="measures a speed",
    baseline=defined_in("exams.soak.plain_files", "files"),
)  # fmt: skip
ROWS_SUITE = Suite(
    "bad-rows", "every bad row is refused or dropped with file, line and reason; sums are right",
    rows, full=ALL_ROWS, quick=180, baseline=defined_in("exams.soak.plain_files", "rows"),
)  # fmt: skip
MUTATED_SUITE = Suite(
    "mutated-files", "rows in = kept + refused + dropped, whatever became of the file",
    mutations, full=2_000, quick=300, baseline=defined_in("exams.soak.plain_files", "mutations"),
)  # fmt: skip
