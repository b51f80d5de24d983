"""A folder that was changed after training is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qlora_core import TokenizerPolicy
from qlora_core.cli.main import main
from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.formats import renderer
from qlora_core.data.go import render_go
from qlora_core.data.modelfile import serve_modelfile, write_modelfile
from qlora_core.data.serve import as_transformers, loops_over_content
from qlora_core.data.system import render_prompt
from qlora_core.data.tokenizer import stop_token_ids
from qlora_core.data.verify import FILE, GOLDEN, modelfile, record_prompts, verify
from qlora_core.errors import BadInput
from qlora_core.registry.detect import installed
from qlora_core.testing.tokenizers import KINDS, toy_tokenizer
from tests.test_templates import tokenizer_for

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def run_folder(
    tmp_path: Path, name: str = "chatml", kind: str = "byte-level", source: str | None = None
) -> Path:
    """What a finished run leaves of its tokenizer."""
    source = source or installed().prompt_formats[name].jinja()
    return save_run(toy_tokenizer(kind, source, **ROLES), tmp_path)


def save_run(tokenizer: Any, tmp_path: Path) -> Path:
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


@pytest.mark.parametrize("name", sorted(installed().prompt_formats))
def test_every_installed_format_has_a_modelfile_that_gives_the_trained_prompts(tmp_path, name):
    folder = run_folder(tmp_path, name)
    golden = json.loads((folder / "adapter" / FILE).read_text(encoding="utf-8"))["golden"]
    text = modelfile(folder)
    assert len(golden) == 3
    for conversation in golden:
        assert conversation["prompt"] == serve_modelfile(text, conversation["asked"])[0]


def test_a_template_that_rewrites_texts_has_no_modelfile(tmp_path, capsys):
    source = "{% for m in messages %}@{{ m.content | upper }}{% endfor %}"
    toy_tokenizer("byte-level", source).save_pretrained(tmp_path)
    record_prompts(toy_tokenizer("byte-level", source), tmp_path)
    with pytest.raises(BadInput, match="rewrites texts or refuses plain conversations"):
        modelfile(tmp_path)


def test_a_template_that_looks_at_the_text_has_no_modelfile(tmp_path):
    """Words of the probe render one way, the golden ones another."""
    chatml = installed().prompt_formats["chatml"].jinja()
    folder = run_folder(tmp_path, source=chatml + "{{ '!' if '2 + 2' in messages[0].content }}")
    with pytest.raises(BadInput, match="golden conversation 1, prompt at"):
        modelfile(folder)


def test_82_of_83_real_templates_have_a_modelfile_that_gives_their_prompts(shared: Path):
    path = shared / "prompts" / "expected" / "real_tokenizer_configs.json"
    refused = []
    for name, config in json.loads(path.read_text(encoding="utf-8"))["configs"].items():
        roles = {role: config[role] for role in ("bos", "eos", "pad", "unk")}
        tokenizer = tokenizer_for(config["chat_template"], **roles)
        template = codec_of(tokenizer, TokenizerPolicy()).template(
            source_of(tokenizer, None, None), {}
        )

        def prompt(messages, template=template):
            return render_prompt(template, messages)

        try:
            text = write_modelfile(renderer(template), prompt, bos="", stops=["</s>"])
        except BadInput:
            refused.append(name)
            continue
        for golden in GOLDEN:
            assert prompt(golden[:-1]) == serve_modelfile(text, golden[:-1])[0], name
    assert refused == ["stephenlzc/Mistral-7B-v0.3-Chinese-Chat-uncensored"]  # needs a system text


CHAT = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]  # fmt: skip
GO = {
    "{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}": "user:a\n\nb;assistant:c;user:d;",
    '{{ if .System }}x{{ else if eq "a" "a" }}y{{ else }}z{{ end }}': "y",
    '{{ $a := "1" }}{{ range .Messages }}{{ $a }}{{ $a = .Content }}{{ end }}': "1a\n\nbc",
    '{{ range .Messages }}{{ if not (eq .Role "user") }}{{ end }}{{ end }}': None,
    '{{ "{{" }} }} {{ "\\"" }}': '{{ }} "',
    "{{ if .System }}": None,
    "a{{ end }}": None,
    "{{ printf .System }}": None,
}


@pytest.mark.parametrize(("source", "text"), GO.items())
def test_the_part_of_gos_language_that_modelfiles_use(source, text):
    if text is None:
        with pytest.raises(ValueError, match=r"not in this part|no end|too many"):
            render_go(source, CHAT)
    else:
        assert render_go(source, CHAT) == text


LOOPS = (
    "{% for m in messages %}{% for part in m.content %}{{ part }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for p in m['content'] | list %}{{ p }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p }}{% endfor %}{% endfor %}",
)


@pytest.mark.parametrize("source", LOOPS)
def test_a_loop_over_the_content_is_seen_as_vllm_sees_it(source):
    assert loops_over_content(source)
    assert not loops_over_content("{% for m in messages %}{{ m.content }}{% endfor %}")


def test_prompts_as_transformers_sends_them_are_those_of_apply_chat_template(shared: Path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2")
    for form in installed().prompt_formats.values():
        tokenizer.chat_template = form.jinja()
        for golden in GOLDEN:
            own = tokenizer.apply_chat_template(list(golden[:-1]), add_generation_prompt=True)
            assert own["input_ids"] == as_transformers(tokenizer, golden[:-1]).ids


def test_a_server_that_adds_a_bos_of_its_own_is_named(tmp_path, shared: Path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2")
    for name, warned in (("chatml", True), ("llama-3", False)):
        tokenizer.chat_template = installed().prompt_formats[name].jinja()
        folder = save_run(tokenizer, tmp_path / name)
        result = verify(folder)
        assert result.difference is None
        assert any("llama.cpp sends another prompt" in w for w in result.warnings) is warned
        assert any("Ollama sends another prompt" in w for w in result.warnings) is warned


def test_a_template_without_a_place_for_system_texts_is_named(tmp_path):
    result = verify(run_folder(tmp_path, "gemma"))
    assert result.difference is None
    assert not [w for w in result.warnings if "system" in w]  # ours merges it as training does
    dropped = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    result = verify(run_folder(tmp_path / "dropped", source=dropped))
    assert result.difference is None
    assert [w for w in result.warnings if "no place for system texts" in w]


def lose_keys(folder: Path) -> None:
    (folder / "adapter" / FILE).write_text('{"schema": 1, "golden": [{}]}', encoding="utf-8")


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "adapter" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lose_keys, "is not what a run writes"), (lose_the_tokenizer, "cannot be loaded"),
     (shutil.rmtree, "does not exist")],
)  # fmt: skip
def test_what_cannot_be_verified_is_bad_input(tmp_path, damage, words, capsys):
    folder = run_folder(tmp_path / "run")
    damage(folder)
    assert main(["verify", str(folder)]) == 2
    assert words in capsys.readouterr().err


def test_a_hostile_template_in_a_folder_is_a_difference(tmp_path, capsys):
    folder = run_folder(tmp_path)
    (folder / "adapter" / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}", "utf-8")
    assert main(["verify", str(folder)]) == 1
    assert "golden conversation 1: the chat template was stopped" in capsys.readouterr().err


def test_an_untouched_folder_says_what_was_compared(tmp_path, capsys):
    assert main(["verify", str(run_folder(tmp_path))]) == 0
    said = capsys.readouterr().out
    for server in ("transformers", "vLLM", "llama.cpp", "Ollama"):
        assert f"prompt as {server} sends it (3)" in said
