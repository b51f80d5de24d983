"""A tokenizer is loaded as its folder wants it, and its family where the folder says nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from qlora_core import Architecture, LoraTargets, PromptFormat, Registry, TokenizerPolicy, hookimpl
from qlora_core.data.encode import encode_conversation, encode_text
from qlora_core.data.formats import identify_prompt_format, template_report
from qlora_core.data.tokenizer import choose_pad, has_tokenizer, load_tokenizer, stop_token_ids
from qlora_core.data.vocabulary import check_vocabulary, untrained_tokens
from qlora_core.errors import BadInput, PluginError
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import PluginRecord
from qlora_core.testing.tokenizers import KINDS, SPECIAL, toy_tokenizer

PLAIN = PromptFormat(
    name="plain",
    system="{content}\n\n",
    user="### Instruction:\n{content}\n\n",
    assistant="### Response:\n{content}{eos}\n\n",
)
FAMILY = Architecture(
    name="family", targets=LoraTargets(), prompt=PLAIN, tokenizer=TokenizerPolicy(bos="required")
)
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def family(**policy) -> Architecture:
    return dataclasses.replace(FAMILY, tokenizer=TokenizerPolicy(**policy))


def saved(folder: Path, kind="byte-level", template=None, **roles) -> Path:
    toy_tokenizer(kind, template, **roles).save_pretrained(folder)
    return folder


@pytest.fixture
def nothing() -> Registry:
    return Registry()


@pytest.mark.parametrize(
    ("policy", "roles", "expected"),
    [
        ((), {"pad_token": "<pad>", "eos_token": "</s>"}, "<pad>"),
        ((), {"pad_token": "</s>", "eos_token": "</s>"}, "</s>"),
        (("<|im_start|>",), {"eos_token": "</s>"}, "<|im_start|>"),
        (("<nowhere>",), {"eos_token": "</s>", "unk_token": "<unk>"}, "<pad>"),
    ],
)
def test_a_pad_token_that_exists_is_chosen(tmp_path, nothing, policy, roles, expected):
    folder = saved(tmp_path, **roles)
    tokenizer = load_tokenizer(folder, family(pad=policy), registry=nothing)
    assert tokenizer.pad_token == expected


def test_eos_pads_only_where_nothing_else_can():
    special = ["</s>", "<unk>"]
    both = toy_tokenizer(special=special, eos_token="</s>", unk_token="<unk>")
    assert choose_pad(both, TokenizerPolicy()) == "<unk>"
    eos = toy_tokenizer(special=["</s>"], eos_token="</s>")
    assert choose_pad(eos, TokenizerPolicy()) == "</s>"
    with pytest.raises(BadInput, match="no pad, unk or eos"):
        choose_pad(toy_tokenizer(special=[]), TokenizerPolicy())


def test_a_folder_without_template_gets_the_familys_prompt(tmp_path, nothing):
    folder = saved(tmp_path, bos_token="<s>", eos_token="</s>")
    tokenizer = load_tokenizer(folder, FAMILY, registry=nothing)
    encoded = encode_conversation(tokenizer, CHAT, policy=FAMILY.tokenizer)
    rendered = PLAIN.render(CHAT, bos="<s>", eos="</s>")
    assert encoded.text == "".join(segment.text for segment in rendered)
    learned = "".join(encoded.text[start:end] for start, end in encoded.learned)
    assert learned == "Hello</s>"


def test_a_folders_own_template_stays_as_it_is(tmp_path, nothing):
    folder = saved(tmp_path / "a", template=CHATML, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(folder, FAMILY, registry=nothing)
    tokenizer.save_pretrained(tmp_path / "b")
    assert tokenizer.chat_template == CHATML
    assert (tmp_path / "b" / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    old, new = (json.loads((tmp_path / n / "tokenizer.json").read_bytes()) for n in "ab")
    assert old == new


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_was_saved_encodes_as_before(tmp_path, nothing, kind):
    folder = saved(tmp_path / "a", kind, bos_token="<s>", eos_token="</s>")
    tokenizer = load_tokenizer(folder, FAMILY, registry=nothing)
    tokenizer(["some", "padded texts"], padding=True, truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b", FAMILY, registry=nothing)
    assert encode_conversation(tokenizer, CHAT) == encode_conversation(again, CHAT)
    assert stop_token_ids(tokenizer, FAMILY.tokenizer) == stop_token_ids(again, FAMILY.tokenizer)


def test_padding_and_truncation_that_were_switched_on_change_no_sample(tmp_path):
    tokenizer = toy_tokenizer(chat_template=CHATML, pad_token="<pad>", eos_token="</s>")
    before = encode_conversation(tokenizer, CHAT)
    tokenizer(["a"], padding="max_length", truncation=True, max_length=4)
    assert before == encode_conversation(tokenizer, CHAT)


def test_a_token_added_later_is_noticed():
    tokenizer = toy_tokenizer(chat_template=CHATML, eos_token="</s>")
    assert encode_conversation(tokenizer, CHAT).labels[-3] != tokenizer.eos_token_id
    tokenizer.add_tokens(["Hello"])
    assert tokenizer.convert_tokens_to_ids("Hello") in encode_conversation(tokenizer, CHAT).labels


def test_generation_stops_on_what_ended_turns_in_training():
    tokenizer = toy_tokenizer(chat_template=CHATML, eos_token="</s>")
    ids = stop_token_ids(tokenizer, TokenizerPolicy(stop=("<s>", "<nowhere>")))
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_end|>", "</s>", "<s>"]


def test_sides_and_family_code_are_applied(tmp_path, nothing):
    def prepare(tokenizer) -> None:
        tokenizer.model_max_length = 77

    architecture = dataclasses.replace(FAMILY, prepare_tokenizer=prepare)
    tokenizer = load_tokenizer(saved(tmp_path, eos_token="</s>"), architecture, registry=nothing)
    assert tokenizer.padding_side == "right"
    assert tokenizer.model_max_length == 77


def test_a_plugin_that_fails_is_named(tmp_path):
    class Plugin:
        @hookimpl
        def qlora_prepare_tokenizer(self, tokenizer, architecture):
            raise RuntimeError("no")

    registry = Registry()
    registry.add(Plugin(), PluginRecord("clumsy", "test", "0"))
    with pytest.raises(PluginError, match="clumsy"):
        load_tokenizer(saved(tmp_path, eos_token="</s>"), FAMILY, registry=registry)


def test_a_folder_without_tokenizer_is_bad_input(tmp_path):
    assert not has_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_tokenizer(tmp_path, FAMILY)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_bad_input(tmp_path, name):
    saved(tmp_path, eos_token="</s>")
    (tmp_path / name).write_text('{"added_tokens": [', encoding="utf-8")
    with pytest.raises(BadInput):
        load_tokenizer(tmp_path, FAMILY)


def test_a_tokenizer_that_brings_code_is_not_run(tmp_path):
    saved(tmp_path, eos_token="</s>")
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "tokenization_mine.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(BadInput, match="was not run"):
        load_tokenizer(tmp_path, FAMILY)


@pytest.mark.parametrize("name", ["llama2", "falcon", "gpt2", "gpt-neox"])
def test_real_folders_load_with_a_pad_token_and_a_template(shared, nothing, name):
    architecture = installed().architectures[
        {"llama2": "llama", "gpt-neox": "gpt_neox"}.get(name, name)
    ]
    tokenizer = load_tokenizer(shared / "tokenizers" / name, architecture, registry=nothing)
    encoded = encode_conversation(tokenizer, CHAT, policy=architecture.tokenizer)
    assert tokenizer.pad_token is not None
    assert encoded.labels[-1] == tokenizer.eos_token_id or tokenizer.eos_token_id in encoded.labels
    raw = encode_text(tokenizer, "Once", policy=architecture.tokenizer)
    assert (raw.input_ids[0] == tokenizer.bos_token_id) == (name == "llama2")


# --- names and reports -----------------------------------------------------------------------


def test_every_format_is_recognised_in_its_own_template():
    registry = installed()
    for form in registry.prompt_formats.values():
        tokenizer = toy_tokenizer(chat_template=form.jinja(), bos_token="<s>", eos_token="</s>")
        assert form.name == identify_prompt_format(tokenizer, registry=registry)


def test_an_unknown_template_has_a_name_that_stays():
    tokenizer = toy_tokenizer(chat_template="{% for m in messages %}@{{ m.content }}{% endfor %}")
    assert identify_prompt_format(tokenizer).startswith("custom:")
    assert identify_prompt_format(tokenizer) == identify_prompt_format(tokenizer)
    assert identify_prompt_format(toy_tokenizer()) == "none"


def test_a_report_says_where_serving_differs_from_training():
    source = CHATML.replace("assistant\n'}}{% endif %}", "assistant\n<think>\n'}}{% endif %}")
    tokenizer = toy_tokenizer(chat_template=source, eos_token="</s>")
    report = template_report(tokenizer)
    assert report["prompt_differs"]
    assert report["generation_prompt"].endswith("<think>\n")
    assert report["trained_prompt"].endswith("assistant\n")
    assert report["turn_end"] == "<|im_end|>"
    assert report["system"] == "own turn"


# --- the model's side ------------------------------------------------------------------------


def test_tokens_beyond_the_matrix_are_refused_before_the_gpu_sees_them():
    tokenizer = toy_tokenizer(eos_token="</s>")
    check_vocabulary(tokenizer, len(tokenizer))
    check_vocabulary(tokenizer, len(tokenizer) + 100)
    with pytest.raises(BadInput, match="beyond the model"):
        check_vocabulary(tokenizer, len(tokenizer) - 3)


def test_untrained_chat_tokens_are_named():
    tokenizer = toy_tokenizer(chat_template=CHATML, special=SPECIAL, eos_token="</s>")
    rows = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    assert untrained_tokens(tokenizer, rows) == []
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    rows[end] = rows[end] * 1e-4
    assert untrained_tokens(tokenizer, rows) == ["<|im_end|>"]
    rows[end] = rows[start]
    assert untrained_tokens(tokenizer, rows) == ["<|im_start|>", "<|im_end|>"]


@dataclasses.dataclass
class Notes:
    """What a run would record."""

    codes: list[str] = dataclasses.field(default_factory=list)

    def note(self, code: str, message: str, remedy: str) -> None:
        self.codes.append(code)


def test_a_run_notes_chat_tokens_that_its_base_never_trained():
    from types import SimpleNamespace

    from qlora_core.training.vocabulary import check_tokens

    tokenizer = toy_tokenizer(chat_template=CHATML, eos_token="</s>")
    embeddings = torch.nn.Embedding(len(tokenizer), 16)
    detection = SimpleNamespace(architecture=FAMILY)
    inputs = SimpleNamespace(tokenizer=tokenizer, detection=detection)
    loaded = SimpleNamespace(model=SimpleNamespace(get_input_embeddings=lambda: embeddings))
    run = Notes()
    check_tokens(run, inputs, loaded)
    assert run.codes == []
    embeddings.weight.data[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 0.0
    check_tokens(run, inputs, loaded)
    assert run.codes == ["untrained-tokens"]
