"""The command line itself: flags spelt out, nearest spellings, exit codes."""

from __future__ import annotations

import pytest

from qlora_core.cli.main import main


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_shortened_flag_is_no_flag_and_the_nearest_one_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refusal(capsys, "train", "--learning-rat", "1")
    assert "unknown argument --learning-rat, did you mean --learning-rate?" in message
    assert "qlora-core train --help" in message


def test_a_flag_like_no_other_is_refused_without_a_guess(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "unknown argument --zzz\n" in refusal(capsys, "detect", "model", "--zzz=3")


def test_a_misspelt_plugin_lists_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "strukture"]) == 2
    assert "did you mean structure?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("train", "--model", "m", "--data", "d", "--output", "o", "--json"),
            "belongs to --dry-run",
        ),
        (("detect", "m", "--json", "--for", "trl"), "two forms of one answer"),
        (("detect", "m", "--build", "--tokens", "0"), "a step has at least one"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
