"""Samples of the exams of hostile and bad input; the whole of them is `python -m exams.soak`."""

from __future__ import annotations

import itertools
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("the exams use alarms, pipes and links of Unix", allow_module_level=True)

from exams.soak import (
    bad_data,
    fuzz_config,
    hostile_adapters,
    hostile_folders,
    injection,
    plugin_faults,
    remote_code,
)
from exams.suite import Suite


def failures(suite: Suite, count: int) -> list[str]:
    cases = list(itertools.islice(suite.cases(count, 1), count))
    assert len(cases) == count
    return [f"{case.name}: {case.detail}" for case in cases if not case.passed]


def test_hostile_folders_are_read_or_refused_at_once() -> None:
    assert failures(hostile_folders.SUITE, 60) == []


def test_damaged_configs_are_answered_or_refused() -> None:
    assert failures(fuzz_config.SUITE, 500) == []


def test_faulty_lines_and_files_are_named() -> None:
    assert failures(bad_data.FILES_SUITE, 100) == []


def test_bad_rows_are_named_wherever_they_stand() -> None:
    assert failures(bad_data.ROWS_SUITE, 100) == []


def test_rows_add_up_in_damaged_files() -> None:
    assert failures(bad_data.MUTATED_SUITE, 90) == []


@pytest.mark.slow
def test_fuzzed_texts_yield_no_control_tokens() -> None:
    assert failures(injection.FUZZ_SUITE, 100) == []


def test_hostile_adapters_are_refused_in_one_message() -> None:
    assert failures(hostile_adapters.SUITE, 20) == []


def test_faulty_plugins_are_named_and_the_others_work() -> None:
    assert failures(plugin_faults.SUITE, 24) == []


@pytest.mark.slow
def test_code_that_comes_with_a_model_never_runs() -> None:
    assert failures(remote_code.SUITE, 20) == []
