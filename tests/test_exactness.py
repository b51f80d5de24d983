"""Samples of the soak: exact resume, changed settings, damage, broken numbers, guards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exams.soak import changes, clean, damage, mutation, numeric, ranks, resume, small
from exams.suite import Suite
from qlora_core.training import files
from qlora_core.training.identity import samples_hash


@pytest.fixture(scope="module")
def bench() -> Iterator[small.Bench]:
    with small.bench() as made:
        yield made


@pytest.mark.parametrize(
    ("suite", "count"),
    [(resume.SUITE, 3), (damage.SUITE, 4), (changes.SUITE, 4), (clean.SUITE, 1)],
    ids=lambda value: value.name if isinstance(value, Suite) else "",
)
def test_a_sample_of_the_suite_holds(suite: Suite, count: int) -> None:
    found = list(suite.cases(count, 1))
    assert len(found) == count
    assert [case for case in found if not case.passed] == []


TRIALS = {trial.name: trial for trial in numeric.trials()}


@pytest.mark.parametrize(
    "name",
    [
        "NaN in a gradient, bfloat16, accumulation 4", "infinity as the loss, float16",
        "NaN in a weight, float32", "infinity in exp_avg_sq", "the last step",
        "the last three steps", "two steps of three", "learning rate 1e6", "learning rate 1e30",
        "worse than knowing nothing", "a spike", "every adapter zero", "adapters frozen",
        "an optimizer of other tensors", "a token that is NaN", "evaluation rows that are NaN",
    ],
)  # fmt: skip
def test_a_broken_number_is_skipped_and_named_or_ends_the_run(
    bench: small.Bench, name: str
) -> None:
    case = numeric.tried(bench, TRIALS[name])
    assert case.passed, case.detail


@pytest.mark.parametrize(
    "name",
    [
        "one bit of a base weight", "rows in another order", "other evaluation rows",
        "chat template", "a plugin that prepares models", "two processes", "rank", "more steps",
        "another release", "model and data moved", "saved more often",
    ],
)  # fmt: skip
def test_a_change_is_refused_with_both_values_or_decides_nothing(
    stage: changes.Stage, name: str
) -> None:
    case = stage.tried(name)
    assert case.passed, case.detail


@pytest.fixture(scope="module")
def stage() -> Iterator[changes.Stage]:
    with small.bench() as made:
        yield changes.Stage(made)


def test_there_is_a_case_for_every_key_that_a_run_records(stage: changes.Stage) -> None:
    case = stage.every_key()
    assert case.passed, case.detail


@pytest.mark.slow
@pytest.mark.parametrize("suite", [ranks.SUITE, mutation.SUITE], ids=lambda suite: suite.name)
def test_a_sample_of_the_longer_suite_holds(suite: Suite) -> None:
    assert [case for case in suite.cases(suite.quick, 1) if not case.passed] == []


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as every save leaves it."""
    folder = tmp_path / "folder"

    def write(staging: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (staging / name).write_text(name)

    files.publish(folder, write, size=10, facts={"run_id": "run", "step": 3})
    assert files.damage(folder) is None
    return folder


def test_a_file_that_is_missing_is_named(published: Path) -> None:
    (published / "b.txt").unlink()
    assert files.damage(published) == "b.txt is missing"


def test_every_flipped_bit_of_a_manifest_is_noticed(published: Path) -> None:
    manifest = published / files.MANIFEST
    content = manifest.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            manifest.write_bytes(bytes(changed))
            assert files.damage(published), f"bit {bit} of byte {place}"


def test_the_order_of_rows_is_part_of_their_hash() -> None:
    rows = [{"input_ids": [n, n + 1], "labels": [-100, n + 1]} for n in (3, 1, 2)]
    assert samples_hash(rows) != samples_hash(rows[::-1])
    assert samples_hash(rows) == samples_hash([dict(row) for row in rows])
