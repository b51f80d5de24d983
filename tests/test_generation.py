"""Text out of a model: the same alone and in a batch, ended by stop tokens, leaving no trace."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutput

from qlora_core.cli.main import main
from qlora_core.errors import BadInput
from qlora_core.models.adapters import attach
from qlora_core.models.generation import continuations, encode_prompt, generate, generate_batch
from qlora_core.models.loader import load
from qlora_core.models.trained import load_for_use
from qlora_core.registry.detect import installed

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "red", "blue", "green", "one", "two", "three"]
TEXT = "red blue green </s>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %} {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    )
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has learned by heart: red is followed by blue green and the end."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    example = {**installed().architectures["llama"].example, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**example, bos_token_id=1, eos_token_id=2)
    )
    tokenizer = make_tokenizer()
    ids = tokenizer([f"<s> {TEXT}", f"one {TEXT}"], return_tensors="pt", padding=True)["input_ids"]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(base: Path) -> tuple[Any, Any]:
    return load(base, device="cpu")


@pytest.fixture(scope="module")
def run_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter says three after red."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)  # of the adapters' start: at this rate not every one gets there
    model = attach(load(base, device="cpu")[0], rank=8)
    ids = make_tokenizer()(["<s> red three </s>"], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "adapter")
    (folder / "run.json").write_text(json.dumps({"settings": {"model": str(base)}}))
    return folder


def test_it_stops_at_the_stop_token_and_leaves_it_out_of_the_text(loaded: Any) -> None:
    answer = generate(*loaded, "<s> red")
    assert (answer.text, answer.token_ids, answer.stopped) == ("blue green", [5, 6, 2], True)


def test_an_answer_cut_at_the_limit_says_so(loaded: Any) -> None:
    answer = generate(*loaded, "<s> red", max_new_tokens=1)
    assert (answer.text, answer.stopped) == ("blue", False)


def test_a_batch_answers_as_one_by_one(loaded: Any) -> None:
    prompts = ["<s> red", "one red blue", [{"role": "user", "content": "red"}]]
    assert generate_batch(*loaded, prompts) == [generate(*loaded, one) for one in prompts]


def test_messages_go_through_the_chat_template(loaded: Any) -> None:
    tokenizer = loaded[1]
    assert encode_prompt(tokenizer, [{"role": "user", "content": "red"}]) == [1, 4]


def test_own_stop_tokens_win(loaded: Any) -> None:
    assert generate(*loaded, "<s> red", stop_token_ids=[6]).token_ids == [5, 6]


def test_mode_and_padding_side_are_as_before(loaded: Any) -> None:
    model, tokenizer = loaded
    model.train()
    side = tokenizer.padding_side
    generate_batch(model, tokenizer, ["<s> red", "red"], max_new_tokens=2)
    assert model.training
    assert tokenizer.padding_side == side
    model.eval()
    generate(model, tokenizer, "red", max_new_tokens=2)
    assert not model.training


def test_drawing_is_reproducible_and_leaves_the_random_state(loaded: Any) -> None:
    state = torch.get_rng_state()
    settings = {"temperature": 3.0, "max_new_tokens": 12, "stop_token_ids": [63]}
    one, again = (generate(*loaded, "red", seed=1, **settings) for _ in range(2))
    assert one == again != generate(*loaded, "red", seed=2, **settings)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_settings_out_of_range_are_bad_input(
    loaded: Any, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(BadInput, match=expected):
        generate(*loaded, "red", **settings)


def test_an_empty_prompt_is_bad_input(loaded: Any) -> None:
    with pytest.raises(BadInput, match="the prompt is empty"):
        generate(*loaded, "")


def test_generate_asks_the_base(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["generate", "--model", str(base), "--prompt", "red", "--device", "cpu"])
    assert (code, capsys.readouterr().out) == (0, "blue green\n")


def test_generate_takes_a_runs_folder_and_finds_its_base(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["generate", "--adapter", str(run_folder), "--prompt", "red", "--device", "cpu"])
    assert (code, capsys.readouterr().out) == (0, "three\n")


def test_generate_reads_standard_input_and_continues_raw_text(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one red\n"))
    code = main(["generate", "--model", str(base), "--raw", "--max-new-tokens", "1"])
    captured = capsys.readouterr()
    assert (code, captured.out) == (0, "blue\n")
    assert "cut at 1 tokens" in captured.err


def test_a_chat_keeps_its_history_and_ends_at_exit(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\nred\n/exit\nnever read\n"))
    asked: list[Any] = []

    def listening(tokenizer: Any, prompt: Any) -> list[int]:
        asked.append([dict(turn) for turn in prompt])
        return encode_prompt(tokenizer, prompt)

    monkeypatch.setattr("qlora_core.models.generation.encode_prompt", listening)
    arguments = ["generate", "--model", str(base), "--chat", "--device", "cpu", "--system", "one"]
    assert main(arguments) == 0
    assert [[turn["role"] for turn in turns] for turns in asked] == [
        ["system", "user"], ["system", "user", "assistant", "user"],
    ]  # fmt: skip
    assert "blue green" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no model was named"),
        (["--chat", "--raw", "--model", "x"], "--raw continues plain text"),
        (["--adapter", "nowhere", "--prompt", "x"], "there is no folder nowhere"),
    ],
)
def test_wrong_usage_is_one_clear_message(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_merge_and_generate_work_together_from_the_command_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", str(run_folder), "--output", str(merged), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "shard by shard" in printed
    assert "loss merged" in printed
    assert main(["generate", "--model", str(merged), "--prompt", "red", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "three\n"
    stops = json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    assert 2 in (stops if isinstance(stops, list) else [stops])


def test_a_merged_model_is_not_quantized_again(run_folder: Path, tmp_path: Path) -> None:
    assert main(["merge", str(run_folder), "--output", str(tmp_path / "m"), "--no-check"]) == 0
    model, _, _ = load_for_use(tmp_path / "m", device="cpu")
    assert not any(parameter.dtype == torch.uint8 for parameter in model.parameters())


def test_another_quantization_than_the_trained_one_is_warned_about(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_for_use(None, adapter=run_folder, quantize="none", device="cpu")
    assert "trained on a nf4 base, and a 16-bit base computes something else" in caplog.text


def test_a_base_without_tokenizer_is_bad_input(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "chat*"))
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_for_use(tmp_path / "bare", device="cpu")


def test_a_base_on_the_hub_is_never_asked_for_when_offline(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(run_folder / "adapter", tmp_path / "adapter"))
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), "base_model_name_or_path": "somebody/base"}
    path.write_text(json.dumps(config))
    arguments = ["--adapter", str(adapter), "--prompt", "red", "--offline", "--device", "cpu"]
    assert main(["generate", *arguments]) == 2
    assert "somebody/base" in capsys.readouterr().err


class Sum(PreTrainedModel, GenerationMixin):
    """Somebody's model: no cache, no arguments beyond two, and every token of the prompt counts."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, 16)
        self.head = torch.nn.Linear(16, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.embeddings(input_ids).cumsum(1)))


class Careless(Sum):
    """Takes whatever comes, a cache too, and ignores it."""

    def forward(self, input_ids: torch.Tensor, **more: Any) -> CausalLMOutput:
        return super().forward(input_ids)


@pytest.mark.parametrize("kind", [Sum, Careless])
def test_a_model_that_knows_no_cache_sees_its_whole_prompt(kind: type[Sum]) -> None:
    torch.manual_seed(5)
    model = kind(LlamaConfig(vocab_size=64)).eval()
    torch.nn.init.normal_(model.head.weight)
    expected = [4, 9, 7]
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert len(set(expected[3:])) > 1
    (found,) = continuations(model, make_tokenizer(), [[4, 9, 7]], max_new_tokens=6, stops=[])
    assert found.token_ids == expected[3:]
    assert "forward" not in model.__dict__
