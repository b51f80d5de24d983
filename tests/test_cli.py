"""The command line itself: flags spelt out, nearest spellings, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_core import Registry
from qlora_core.cli.main import main
from qlora_core.registry.detect import installed


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


LLAMA = dict(installed().architectures["llama"].example)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str]) -> str:
    """What `plugins new my_family` says of a Llama; its folder is beside the working one."""
    monkeypatch.chdir(tmp_path)
    Path("small.json").write_text(json.dumps(LLAMA))
    Path("config.json").write_text("{}")  # of something else: only the named file is read
    assert main(["plugins", "new", "my_family", "--model", "small.json"]) == 0
    return capfd.readouterr().out


def test_a_new_plugin_names_the_family_that_claims_its_type_and_supersedes_it(begun: str) -> None:
    assert "note: the installed family 'llama' (qlora-core) claims model_type 'llama' too" in begun
    path = Path("qlora-core-my-family/my_family.py")
    registry = Registry.from_environment(files=[path])
    assert registry.architectures["my_family"].supersedes == ("llama",)


def test_a_new_plugin_passes_the_contract_as_a_file(
    begun: str, capfd: pytest.CaptureFixture[str]
) -> None:
    relative = Path("qlora-core-my-family/my_family.py")
    assert main(["plugins", "check", str(relative)]) == 0, capfd.readouterr().out
    said = capfd.readouterr().out
    assert "my_family-llama" in said
    assert "failed" not in said
    assert "skipped" not in said


def test_a_plugin_file_is_examined_under_its_absolute_path_too(
    begun: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path("qlora-core-my-family/my_family.py").resolve()
    path.write_text(path.read_text().replace("supersedes=", "class_names="))
    assert main(["plugins", "check", str(path)]) == 1
    said = capfd.readouterr().out
    assert "2 architectures claim this model equally well" in said
    assert "FAILED test_contract.py::TestContract::test_it_recognises_its_own_example" in said


@pytest.mark.parametrize("name", ["llama", "structure"])
def test_a_taken_name_is_refused_for_a_new_plugin(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["plugins", "new", name, "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{name!r} is taken by the plugin {name!r} of qlora-core" in said
    assert not folder.exists()


def test_a_new_plugin_called_as_a_type_that_is_claimed_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "new", "code_llama", "--output", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "'llama' (qlora-core) claims model_type 'code_llama' too" in said


def test_long_names_leave_the_columns_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert main(["detect", str(tmp_path), "--explain"]) == 0
    verdicts = capsys.readouterr().out.partition("verdicts\n")[2].splitlines()
    assert len({line.index(" claims model_type") for line in verdicts if " claims " in line}) == 1
    assert main(["plugins"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "  " in line]
    ours = [line.index(" qlora-core ") for line in listed if " qlora-core " in line]
    assert len(set(ours)) == 1
