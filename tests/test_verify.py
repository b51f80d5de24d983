"""A folder that was changed after training is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_core import TokenizerPolicy
from qlora_core.cli.main import main
from qlora_core.data.tokenizer import stop_token_ids
from qlora_core.data.verify import FILE, modelfile, record_prompts, verify
from qlora_core.errors import BadInput
from qlora_core.registry.detect import installed
from qlora_core.testing.tokenizers import KINDS, toy_tokenizer

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def run_folder(tmp_path: Path, name: str = "chatml", kind: str = "byte-level") -> Path:
    """What a finished run leaves of its tokenizer."""
    source = installed().prompt_formats[name].jinja()
    tokenizer = toy_tokenizer(kind, source, **ROLES)
    folder = tmp_path / "adapter"
    tokenizer.save_pretrained(folder)
    record_prompts(tokenizer, folder)
    stops = {"eos_token_id": stop_token_ids(tokenizer, TokenizerPolicy())}
    (folder / "generation_config.json").write_text(json.dumps(stops), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_untouched_folder_is_what_was_trained(tmp_path, kind, capsys):
    folder = run_folder(tmp_path, kind=kind)
    assert main(["verify", str(folder)]) == 0
    assert "what is served is what was trained" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["alpaca", "llama-2", "llama-3", "gemma", "mistral-v3", "phi-3"])
def test_common_formats_verify(tmp_path, name):
    assert verify(run_folder(tmp_path, name)).difference is None


def change_template(folder: Path) -> None:
    path = folder / "adapter" / "chat_template.jinja"
    path.write_text(
        path.read_text(encoding="utf-8").replace("<|im_end|>", "</s>"), encoding="utf-8"
    )


def lose_stops(folder: Path) -> None:
    (folder / "adapter" / "generation_config.json").write_text('{"eos_token_id": 1}', "utf-8")


def lose_tokens(folder: Path) -> None:
    path = folder / "adapter" / "tokenizer.json"
    source = json.loads(path.read_text(encoding="utf-8"))
    source["added_tokens"] = [t for t in source["added_tokens"] if "im_end" not in t["content"]]
    path.write_text(json.dumps(source), encoding="utf-8")


@pytest.mark.parametrize("damage", [change_template, lose_stops, lose_tokens])
def test_a_changed_folder_exits_with_1_and_the_first_difference(tmp_path, damage, capsys):
    folder = run_folder(tmp_path)
    damage(folder)
    assert main(["verify", str(folder)]) == 1
    assert "not what was trained: " in capsys.readouterr().err


def test_a_folder_without_a_record_is_bad_input(tmp_path, capsys):
    (run_folder(tmp_path) / "adapter" / FILE).unlink()
    assert main(["verify", str(tmp_path)]) == 2
    assert FILE in capsys.readouterr().err


def test_a_modelfile_holds_template_and_stops(tmp_path, capsys):
    assert main(["verify", str(run_folder(tmp_path)), "--modelfile"]) == 0
    text = capsys.readouterr().out
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in text
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n' in text
    assert text.count("{{ end }}") == 2
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_template_that_is_no_format_has_no_modelfile(tmp_path):
    tokenizer = toy_tokenizer("byte-level", "{% for m in messages %}@{{ m.content }}{% endfor %}")
    tokenizer.save_pretrained(tmp_path)
    record_prompts(tokenizer, tmp_path)
    with pytest.raises(BadInput, match="no installed prompt format"):
        modelfile(tmp_path)
