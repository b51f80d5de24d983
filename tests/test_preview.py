"""What the dry run shows is what the tokens say, and a sample cannot break out of the page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qlora_core.cli.main import main
from qlora_core.data.collate import Sample
from qlora_core.data.preview import html_preview, terminal_preview, tokens_of

HOSTILE = "</span><script>alert('x')</script> \x1b[31m \u202e café 🎈 <b>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte: characters beyond ASCII are spread over several tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def sample(tokenizer: Any, prompt: str, answer: str) -> Sample:
    ids, more = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
    labels = [-100] * len(ids) + more
    return {"input_ids": ids + more, "labels": labels, "source": ("train.jsonl", 7)}


def shown(samples: list[Sample], tokenizer: Any, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(terminal_preview(samples, tokenizer, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("text", [HOSTILE, "", "é", "🎈", "a\ufffdb", "日本語"])
def test_the_tokens_joined_are_the_text(tokenizer: Any, text: str) -> None:
    tokens = tokens_of(tokenizer, sample(tokenizer, text, " answer é"))
    assert "".join(token.text for token in tokens) == text + " answer é"


def test_broken_characters_are_shown_as_broken(tokenizer: Any) -> None:
    half = tokenizer.encode("🎈", add_special_tokens=False)[:2]
    tokens = tokens_of(tokenizer, {"input_ids": half, "labels": half})
    assert "".join(token.text for token in tokens) == tokenizer.decode(half)


def test_a_sentencepiece_tokenizer_keeps_its_spaces(shared: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    made = sample(tokenizer, "Once upon a time", " there was")
    decoded = tokenizer.decode(made["input_ids"], clean_up_tokenization_spaces=False)
    assert "".join(token.text for token in tokens_of(tokenizer, made)) == decoded


def test_the_terminal_shows_source_counts_and_what_is_learned(tokenizer: Any) -> None:
    output = shown([sample(tokenizer, "ask ", "answer</s>")], tokenizer, colour=False)
    assert "sample 1 from train.jsonl:7: 11 tokens, 7 learned" in output
    assert "ask [[answer</s>]]" in output
    eos = tokenizer.eos_token_id
    assert f"'</s>' {eos} {eos}" in " ".join(output.split())
    assert f"'a' {tokenizer.encode('a')[0]} {tokenizer.encode('a')[0]}" in " ".join(output.split())


def test_a_sample_cannot_steer_the_terminal(tokenizer: Any) -> None:
    output = shown([sample(tokenizer, HOSTILE, "\x9b2J\x07")], tokenizer, colour=False)
    assert not {"\x1b", "\x9b", "\x07", "\u202e"}.intersection(output)
    assert "␛[31m" in output


def test_only_as_many_samples_as_asked_for_are_shown(tokenizer: Any) -> None:
    samples = [sample(tokenizer, "ask ", f"answer {i}") for i in range(9)]
    assert "sample 2" in shown(samples, tokenizer, count=2)
    assert "sample 3" not in shown(samples, tokenizer, count=2)
    assert html_preview(samples, tokenizer, count=2).count("<section>") == 2


class Page(HTMLParser):
    """The elements of a page, what it loads, and the text of its samples."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.links: list[str] = []
        self.learned: list[str] = []
        self.samples = ""
        self._open: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "span":
            self._open.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and "title" in self._open[-1]:
            self.samples += data
            if self._open[-1].get("class") == "learned":
                self.learned.append(data)


def test_the_page_holds_the_text_and_nothing_that_runs_or_loads(tokenizer: Any) -> None:
    page = Page(html_preview([sample(tokenizer, HOSTILE, "an <i>answer</i>")], tokenizer))
    assert page.samples == HOSTILE + "an <i>answer</i>"
    assert "".join(page.learned) == "an <i>answer</i>"
    assert not page.elements.intersection({"script", "b", "i", "img", "link", "iframe"})
    assert page.links == []


def test_the_page_shows_the_report_escaped(tokenizer: Any) -> None:
    text = html_preview([], tokenizer, report=["<script>.jsonl: 3 rows", "3 kept"])
    assert "&lt;script&gt;.jsonl: 3 rows\n3 kept" in text


def test_the_dry_run_writes_the_page_and_nothing_else(
    shared: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "How many <b>?", "answer": "Two."}\n' * 3, encoding="utf-8")
    page = tmp_path / "page.html"
    model = str(shared / "models" / "stories260K")
    command = ["train", "--model", model, "--data", str(rows), "--output", str(tmp_path / "run")]
    assert main([*command, "--dry-run", "--html", str(page)]) == 0
    assert "How many <b>?" in Page(page.read_text("utf-8")).samples
    assert "rows.jsonl:1" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main([*command, "--html", str(page)]) == 2
