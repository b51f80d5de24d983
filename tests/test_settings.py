"""Settings: one definition for files, flags and documentation, and clear refusals."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from qlora_core.errors import BadInput
from qlora_core.training.settings import TrainSettings, add_flags, documentation, settings_from

NEEDED = {"model": "m", "data": "d.jsonl", "output": "out"}


def parse(*arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(arguments))


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_setting_has_a_flag_and_a_help_text() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    helped = parser.format_help()
    for entry in fields(TrainSettings):
        assert f"--{entry.name.replace('_', '-')}" in helped
        assert entry.metadata["help"]


def test_a_flag_that_is_not_given_leaves_the_file_alone(tmp_path: Path) -> None:
    file = written(tmp_path, 'model = "m"\ndata = "d"\noutput = "o"\nrank = 4\nrslora = true\n')
    assert settings_from(file, parse()).rank == 4
    settings = settings_from(file, parse("--rank", "8", "--no-rslora"))
    assert (settings.rank, settings.rslora) == (8, False)


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml = written(
        tmp_path,
        'model = "m"\ndata = "d"\noutput = "o"\nlearning_rate = 1e-4\nblock = ["report"]\n'
        '[columns]\nfrage = "user"\n',
    )
    yaml = written(
        tmp_path,
        "model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nblock: [report]\n"
        "columns: {frage: user}\n",
        "run.yaml",
    )
    assert settings_from(toml, {}) == settings_from(yaml, {})
    assert settings_from(yaml, {}).learning_rate == 1e-4


def test_flags_and_keys_are_the_same_settings(tmp_path: Path) -> None:
    flags = parse("--model", "m", "--data", "d", "--output", "o", "--max-steps", "5",
                  "--columns", "q=user,a=assistant", "--block", "x", "--block", "y")  # fmt: skip
    file = written(
        tmp_path,
        'model = "m"\ndata = "d"\noutput = "o"\nmax_steps = 5\nblock = ["x", "y"]\n'
        'columns = {q = "user", a = "assistant"}\n',
    )
    assert settings_from(None, flags) == settings_from(file, {})


@pytest.mark.parametrize(
    ("line", "name", "meant"),
    [
        ("compile: off", "compile", "off"),
        ("gradient_checkpointing: on", "gradient_checkpointing", "on"),
        ("targets: [q_proj, v_proj]", "targets", "q_proj,v_proj"),
        ("data: [a.jsonl, b.jsonl]", "data", "a.jsonl,b.jsonl"),
        ("columns: prompt=user,completion=assistant", "columns",
         {"prompt": "user", "completion": "assistant"}),
        ("skip_bad: on", "skip_bad", True),
    ],
)  # fmt: skip
def test_a_yaml_file_may_write_a_value_as_its_flag_does(
    tmp_path: Path, line: str, name: str, meant: object
) -> None:
    file = written(tmp_path, line, "run.yaml")
    needed = {key: value for key, value in NEEDED.items() if key != name}
    assert getattr(settings_from(file, needed), name) == meant


def test_an_unknown_key_names_file_key_and_the_nearest(tmp_path: Path) -> None:
    file = written(tmp_path, "learning_rat = 1e-4\n")
    with pytest.raises(BadInput) as caught:
        settings_from(file, NEEDED)
    assert str(file) in caught.value.problem
    assert "'learning_rat'" in caught.value.problem
    assert "'learning_rate'" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('rank = "16"', "rank"), ("rank = 16.0", "rank"), ("rank = true", "rank"),
        ("targets = 3", "targets"), ("rslora = 1", "rslora"), ('block = "report"', "block"),
        ("learning_rate = nan", "learning_rate"), ("learning_rate = -1.0", "learning_rate"),
        ("dropout = 1.0", "dropout"), ("batch_size = 0", "batch_size"),
        ('schedule = "cosin"', "cosine"), ('optimizer = "sgd"', "adamw"),
        ("max_length = 1", "max_length"), ("columns = {a = 1}", "columns"), ('model = ""', "model"),
        ("eval_every = 5", "eval_split"), ('final_adapter = "best"', "eval_split"),
        ("early_stop = 2\neval_split = 0.1", "eval_every"), ("rank = ", "line 1"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_file_and_key(tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, line + "\n")
    with pytest.raises(BadInput) as caught:
        settings_from(file, {k: v for k, v in NEEDED.items() if k not in line})
    assert str(file) in caught.value.problem
    assert said in str(caught.value)


def test_a_bad_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\ndata = "d"\noutput = "o"\n')
    with pytest.raises(BadInput) as refused:
        settings_from(file, {"rank": 0})
    assert refused.value.problem == "rank = 0: must be at least 1"


def test_epochs_and_max_steps_contradict_each_other_unless_a_flag_decides(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"epochs.*max_steps"):
        settings_from(written(tmp_path, "epochs = 2\nmax_steps = 9\n"), NEEDED)
    with pytest.raises(BadInput, match=r"epochs.*max_steps"):
        settings_from(None, {**NEEDED, "epochs": 2.0, "max_steps": 9})
    decided = settings_from(written(tmp_path, "epochs = 2\n"), {**NEEDED, "max_steps": 9})
    assert (decided.epochs, decided.max_steps) == (None, 9)


def test_what_is_missing_is_named_all_at_once() -> None:
    with pytest.raises(BadInput, match="no model, no data, no output"):
        settings_from(None, {})


@pytest.mark.parametrize("name", ["absent.toml", "run.json", "list.yaml", "broken.yaml"])
def test_an_unusable_settings_file_is_refused(tmp_path: Path, name: str) -> None:
    if name != "absent.toml":
        written(tmp_path, {"list.yaml": "- 1\n", "broken.yaml": "a: [\n"}.get(name, "{}"), name)
    with pytest.raises(BadInput, match=name):
        settings_from(tmp_path / name, NEEDED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank: 8\nlora: 1\nrank: 4\n", "rank stands twice, on line 1 and again on line 3"),
        ("rank: 8\n'rank': 4\n", "rank stands twice, on line 1 and again on line 2"),
        ("{rank: 8, rank: 4}\n", "rank stands twice, on line 1 and again on line 1"),
        ("columns:\n  q: user\n  q: assistant\n", "q stands twice, on line 2 and again on line 3"),
        ("block: [{a: 1, a: 2}]\n", "a stands twice"),
    ],
)
def test_a_yaml_key_that_stands_twice_is_refused_with_its_lines(
    tmp_path: Path, text: str, said: str
) -> None:
    file = written(tmp_path, text, "run.yaml")
    with pytest.raises(BadInput) as caught:
        settings_from(file, NEEDED)
    assert f"{file}: {said}" in caught.value.problem


def test_the_same_yaml_key_in_two_mappings_is_no_key_twice(tmp_path: Path) -> None:
    text = "columns: &all {q: user, a: assistant}\nmodel: q\nblock: [q, q]\n"
    settings = settings_from(written(tmp_path, text, "run.yaml"), {**NEEDED, "model": "m"})
    assert settings.columns == {"q": "user", "a": "assistant"}


def test_settings_need_no_torch() -> None:
    code = "import sys, qlora_core.training.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_documentation_lists_every_setting_as_it_is() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert documentation() in page, "python -m qlora_core.training.settings prints it"


def test_defaults_are_valid_and_plain() -> None:
    assert asdict(TrainSettings(**NEEDED))["rank"] == 16


@pytest.mark.parametrize("roles", ["asistant", "Assistant", "gpt", "assistant,", "user;tool"])
def test_a_role_that_no_turn_has_cannot_be_trusted(roles: str) -> None:
    with pytest.raises(BadInput, match=r"trusted_roles = .* is no role") as caught:
        TrainSettings(**NEEDED, trusted_roles=roles)
    assert "system, user, assistant, tool" in caught.value.remedy


def test_roles_are_trusted_with_spaces_between_them() -> None:
    assert TrainSettings(**NEEDED, trusted_roles="assistant, tool").trusted_roles
