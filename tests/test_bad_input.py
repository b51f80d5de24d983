"""Bad input gives one clear message and exit code 2, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import qlora_base

from qlora_core.cli.main import main

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(4)))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one message of a refused command line."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.count("error:") == 1, printed
    assert "\n  -> " in printed, "the message must say what to do next"
    return printed


def train(model: str | Path, data: str | Path, output: Path, *more: str) -> list[str | Path]:
    return [
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output",
        output,
        "--max-steps",
        "1",
        *more,
    ]


def test_a_folder_that_is_not_a_model(capsys, tmp_path: Path, data: Path) -> None:
    assert "no config.json" in refused(capsys, "detect", tmp_path)
    assert "no config.json" in refused(capsys, *train(tmp_path, data, tmp_path / "out"))


def test_a_folder_that_does_not_exist(capsys, tmp_path: Path, data: Path) -> None:
    assert "no folder" in refused(capsys, "detect", tmp_path / "nowhere")
    assert "no folder" in refused(capsys, *train(tmp_path / "nowhere", data, tmp_path / "out"))


def test_a_model_type_that_transformers_does_not_know_either(capsys, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    assert "lama" in refused(capsys, "detect", tmp_path)


def test_a_missing_data_file(capsys, tmp_path: Path) -> None:
    message = refused(capsys, *train(qlora_base.MODEL, tmp_path / "no.jsonl", tmp_path / "out"))
    assert "no.jsonl" in message


def test_a_data_file_with_a_broken_line_names_the_line(capsys, tmp_path: Path, data: Path) -> None:
    lines = data.read_text().splitlines()
    lines[2] = lines[2][:-3]
    data.write_text("\n".join(lines))
    message = refused(capsys, *train(qlora_base.MODEL, data, tmp_path / "out"))
    assert "data.jsonl" in message
    assert "line 3" in message or ":3" in message


def test_an_unknown_setting_names_the_nearest(capsys, tmp_path: Path, data: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("learning_rat = 1e-4\n")
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--config", str(config))
    assert "learning_rate" in refused(capsys, *command)


def test_a_target_that_does_not_exist_lists_the_candidates(
    capsys, tmp_path: Path, data: Path
) -> None:
    message = refused(capsys, "detect", qlora_base.MODEL, "--targets", "q_prj")
    assert "q_proj" in message
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--targets", "q_proj,gate_prj")
    assert "gate_proj" in refused(capsys, *command)


def test_an_expression_that_matches_no_layer_lists_the_candidates(
    capsys, tmp_path: Path, data: Path
) -> None:
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--targets", r".*\.nothing")
    assert "q_proj" in refused(capsys, *command)


@pytest.mark.parametrize(
    "flags",
    [
        ("--learning-rate", "-1"),
        ("--batch-size", "0"),
        ("--rank", "0"),
        ("--dropout", "1.5"),
        ("--schedule", "cosin"),
        ("--max-length", "1"),
    ],
)
def test_a_setting_out_of_its_range(
    capsys, tmp_path: Path, data: Path, flags: tuple[str, str]
) -> None:
    command = [str(a) for a in train(qlora_base.MODEL, data, tmp_path / "out", *flags)]
    try:
        code = main(command)
    except SystemExit as error:  # argparse refuses what no setting of that kind can be
        code = error.code
    assert code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert flags[0].lstrip("-").replace("-", "_") in printed.replace("-", "_")


def test_nothing_is_left_behind_by_a_refused_run(capsys, tmp_path: Path, data: Path) -> None:
    refused(capsys, *train(qlora_base.MODEL, data, tmp_path / "out", "--targets", "q_prj"))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_mistyped_flag_is_answered_without_a_page_of_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--compute-dtype", "float15"])
    printed = capsys.readouterr().err
    assert "invalid choice: 'float15'" in printed
    assert len(printed.splitlines()) == 2
    assert "see qlora-core train --help" in printed


def test_a_close_name_is_proposed_once(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    printed = refused(
        capsys, *train(qlora_base.MODEL, data, tmp_path / "run", "--targets", "gate_prj")
    )
    assert "close: gate_proj\n" in printed


def test_a_utf16_file_is_called_that(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    data.write_text(data.read_text(), encoding="utf-16")
    printed = refused(capsys, *train(qlora_base.MODEL, data, tmp_path / "run"))
    assert "the file is UTF-16; save it as UTF-8" in printed


def test_a_rank_beyond_every_layer_is_refused_before_the_weights_load(
    capsys, tmp_path: Path, data: Path
) -> None:
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--rank", "100000", "--dry-run")
    assert "rank 100,000 is more than any adapted layer has" in refused(capsys, *command)


def test_what_an_expression_matches_in_vain_is_said_before_the_run(
    capsys, tmp_path: Path, data: Path
) -> None:
    command = train(
        qlora_base.MODEL, data, tmp_path / "out", "--targets", r".*\.q_proj|lm_head", "--dry-run"
    )
    assert main([str(a) for a in command]) == 0
    printed = capsys.readouterr()
    assert "warning [targets-without-adapter]" in printed.out
    assert "1 (lm_head): it is the output head" in printed.out


def test_a_rank_beyond_some_layers_is_said(capsys, tmp_path: Path, data: Path) -> None:
    config = json.loads((qlora_base.MODEL / "config.json").read_text())
    rank = str(config["intermediate_size"])
    rank = str(min(config["hidden_size"], int(rank)))
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--rank", rank, "--dry-run")
    assert main([str(a) for a in command]) == 0
    printed = capsys.readouterr()
    narrow = config["num_key_value_heads"] < config["num_attention_heads"]
    assert ("wide-rank" in printed.out + printed.err) is narrow


def test_samples_longer_than_the_model_was_made_for_are_said(
    capsys, tmp_path: Path, data: Path
) -> None:
    command = train(qlora_base.MODEL, data, tmp_path / "out", "--max-length", "500000", "--dry-run")
    assert main([str(a) for a in command]) == 0
    printed = capsys.readouterr()
    assert "max_length is 500,000, and the model was made for" in printed.out + printed.err


def test_a_folder_without_its_flag_is_told_which_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "run"])
    assert stopped.value.code == 2
    assert "unknown argument run, did you mean --adapter run or --model run?" in (
        capsys.readouterr().err
    )
