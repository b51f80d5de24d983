"""Samples of the soak: exact resume, changed settings, damage, broken numbers, guards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exams.soak import changes, clean, damage, numeric, resume, small
from exams.suite import Suite


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
