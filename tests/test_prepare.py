"""From files to samples: what is kept, cut, dropped and refused, and that it all adds up."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qlora_core.data.encode import Encoded
from qlora_core.data.prepare import PreparedData, prepare_data
from qlora_core.data.split import split_conversation
from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture, LoraTargets
from qlora_core.facts.prompt import PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy

CASES = int(os.environ.get("QLORA_TEST_CASES", "1"))
"""Multiplies the property cases: 10 for a nightly run."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ message.role[0] }}:{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Settings:
    """What the training settings know of the data."""

    data: str
    eval_data: str | None = None
    eval_split: float = 0.0
    columns: Any = None
    max_length: int | None = None
    overlong: str = "cut"
    trusted_roles: str | None = None
    skip_bad: bool = False
    seed: int = 0
    offline: bool = True


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, so that lengths can be counted by hand."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    made.chat_template = TEMPLATE
    return made


def pairs(count: int, **more: str) -> list[dict[str, Any]]:
    return [{"question": f"q{i}", "answer": f"a{i}", **more} for i in range(count)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def learned(tokenizer: Any, sample: Any) -> str:
    return tokenizer.decode([label for label in sample["labels"] if label != -100])


def adds_up(prepared: PreparedData) -> bool:
    report = prepared.report
    dropped = sum(count.count for count in report.dropped.values())
    return report.rows == report.kept + report.refused + dropped


def test_samples_are_the_rows_in_order(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", pairs(3))
    prepared = prepare_data(Settings(source), tokenizer)
    texts = [tokenizer.decode(sample["input_ids"]) for sample in prepared.train]
    assert texts == [f"<s>u:q{i}\na:a{i}</s>" for i in range(3)]
    assert [learned(tokenizer, s) for s in prepared.train] == [f"a{i}</s>" for i in range(3)]
    assert [s["source"] for s in prepared.train] == [(source, i) for i in (1, 2, 3)]
    assert prepared.report.tokens == 3 * 11
    assert prepared.report.learned_tokens == 3 * 3


def test_a_long_row_loses_the_start_of_its_prompt_and_never_its_answer(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"question": "0123456789" * 10, "answer": "the answer"}
    source = write(tmp_path / "a.jsonl", [*pairs(2), row])
    prepared = prepare_data(Settings(source, max_length=40), tokenizer)
    long = prepared.train[2]
    assert len(long["input_ids"]) == 40
    assert tokenizer.decode(long["input_ids"]).endswith("0123456789\na:the answer</s>")
    assert learned(tokenizer, long) == "the answer</s>"
    assert prepared.report.cut.examples == [f"{source}:3"]
    assert prepared.report.cut_tokens == 117 - 40


def test_an_answer_that_does_not_fit_is_dropped_and_named(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a" * 99}, *pairs(2)])
    prepared = prepare_data(Settings(source, max_length=40), tokenizer)
    ((reason, count),) = prepared.report.dropped.items()
    assert reason == "the answer does not fit into the maximum length"
    assert count.examples == [f"{source}:1"]
    assert "the longest row has 107 tokens" in "\n".join(prepared.report.summary())
    assert adds_up(prepared)


def test_long_rows_can_be_dropped_instead(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": "q" * 99, "answer": "a"}, *pairs(2)])
    prepared = prepare_data(Settings(source, max_length=40, overlong="drop"), tokenizer)
    assert list(prepared.report.dropped) == ["longer than the maximum length"]
    assert len(prepared.train) == 2
    with pytest.raises(BadInput, match="choose cut, split or drop"):
        prepare_data(Settings(source, overlong="keep"), tokenizer)


def long_chat(*lengths: int, system: bool = True) -> dict[str, Any]:
    turns = [{"role": "system", "content": "S"}] if system else []
    for number, length in enumerate(lengths):
        turns += [{"role": "user", "content": f"q{number}"},
                  {"role": "assistant", "content": f"a{number}" + "." * length}]  # fmt: skip
    return {"messages": turns}


def test_long_conversations_can_be_split_at_the_users_turns(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [long_chat(0, 0, 9, 0, 0), long_chat(0)])
    whole = prepare_data(Settings(source), tokenizer)
    prepared = prepare_data(Settings(source, max_length=30, overlong="split"), tokenizer)
    samples = [sample for sample in prepared.train if sample["source"][1] == 1]
    texts = [tokenizer.decode(sample["input_ids"]) for sample in samples]
    assert len(texts) > 1
    assert all(text.startswith("<s>s:S\nu:q") for text in texts)
    assert all(len(sample["input_ids"]) <= 30 for sample in samples)
    assert "".join(learned(tokenizer, s) for s in samples) == learned(tokenizer, whole.train[0])
    assert prepared.report.split.examples == [f"{source}:1"]
    assert not prepared.report.cut.count
    assert "long rows split into several samples: 1" in "\n".join(prepared.report.summary())
    assert adds_up(prepared)


def test_what_fits_in_no_piece_is_noted_and_the_rest_is_kept(tmp_path, tokenizer) -> None:
    source = write(tmp_path / "a.jsonl", [long_chat(0, 99, 0), long_chat(99), long_chat(0)])
    prepared = prepare_data(Settings(source, max_length=30, overlong="split"), tokenizer)
    first = [sample for sample in prepared.train if sample["source"][1] == 1]
    assert [learned(tokenizer, sample) for sample in first] == ["a0</s>", "a2</s>"]
    assert prepared.report.notes["an answer that is longer than the maximum length"].count == 1
    assert prepared.report.dropped["the answer does not fit into the maximum length"].count == 1
    assert adds_up(prepared)


def test_where_nothing_can_be_split_the_length_of_the_longest_row_is_said(
    tmp_path: Path, tokenizer: Any
) -> None:
    source = write(tmp_path / "a.jsonl", [long_chat(99), long_chat(50)])
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(source, max_length=30, overlong="split"), tokenizer)
    assert "the longest row has 114 tokens" in caught.value.remedy


def test_an_exchange_that_is_too_long_loses_the_start_of_its_prompt(tmp_path, tokenizer) -> None:
    row = long_chat(0, 0)
    row["messages"][1]["content"] = "q" * 50
    source = write(tmp_path / "a.jsonl", [row])
    prepared = prepare_data(Settings(source, max_length=30, overlong="split"), tokenizer)
    assert [learned(tokenizer, sample) for sample in prepared.train] == ["a0</s>", "a1</s>"]
    assert prepared.report.cut.count == 1
    assert prepared.report.split.count == 1


def test_tool_results_stay_with_their_question(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls},
             {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"}]  # fmt: skip
    lengths = []

    def encode(messages: Any) -> Encoded:
        lengths.append([m["role"] for m in messages])
        cut = int(len(messages) > 5)
        return Encoded(text="", input_ids=[1], labels=[1], learned=[], truncated=cut)

    head = [{"role": "system", "content": "S"}]
    assert len(split_conversation([*head, *turns, *turns], encode)) == 2
    assert lengths[-1] == ["system", "user", "assistant", "tool", "assistant"]


def test_subfolders_with_data_are_warned_of_unless_they_are_evaluated_on(
    tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "a.jsonl", pairs(3))
    write(tmp_path / "held" / "b.jsonl", pairs(5)[3:])
    write(tmp_path / ".cache" / "c.jsonl", pairs(1))
    base = Settings(str(tmp_path))
    report = prepare_data(base, tokenizer).report
    assert report.ignored == (f"{tmp_path}/.cache/", f"{tmp_path}/held/")
    assert f"not read, in the same folder: {tmp_path}/.cache/" in "\n".join(report.summary())
    (warning,) = report.warnings
    assert warning.message == f"1 subfolders hold data files that are not read: {tmp_path}/held/"
    report = prepare_data(replace(base, eval_data=str(tmp_path / "held")), tokenizer).report
    assert (report.ignored_count, report.warnings) == (1, ())


def test_only_a_file_without_any_usable_row_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    empty = {"question": "q", "answer": ""}
    source = write(tmp_path / "a.jsonl", [empty, empty])
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(source), tokenizer)
    assert "the assistant turn is empty: 2 (a.jsonl:1, 2)" in caught.value.problem
    assert len(
        prepare_data(Settings(write(tmp_path / "b.jsonl", [empty, *pairs(1)])), tokenizer).train
    )
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(source, columns="question=text", max_length=1), tokenizer)
    assert "no usable row" in caught.value.problem
    with pytest.raises(BadInput, match="no usable row"):
        prepare_data(Settings(write(tmp_path / "c.jsonl", [])), tokenizer)


# format -> a good row, and rows that are none, with what must be said
FORMATS: dict[str, tuple[dict[str, Any], list[tuple[Any, str]]]] = {
    "question/answer": (
        {"question": "q", "answer": "a"},
        [
            ({"question": "q"}, '"answer" is missing'),
            ({"question": "q", "answer": None}, "null"),
            ({"question": "q", "answer": 5}, "the number 5"),
            ({"question": ["q"], "answer": "a"}, "question[0] is text"),
            ({"qestion": "q", "answer": "a"}, '"question" is missing'),
            ([], "found a list"),
        ],
    ),
    "Alpaca": (
        {"instruction": "q", "input": "i", "output": "a"},
        [
            ({"instruction": "q", "input": "i"}, '"output" is missing'),
            ({"instruction": "q", "input": 3, "output": "a"}, "the number 3"),
            ({"instruction": None, "output": "a"}, '"instruction" is null'),
            ({"instruction": "q", "output": {"a": 1}}, "an object"),
            ({"instruction": "q", "output": "a", "history": [["q"]]}, "must be a pair"),
        ],
    ),
    "conversations": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [
            ({"messages": []}, "an empty list"),
            ({"messages": None}, "null"),
            ({"messages": [{"role": "usr", "content": "q"}]}, "unknown role 'usr'"),
            ({"messages": [{"content": "q"}]}, 'has no "role"'),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"mesages": []}, '"messages" is missing (found: mesages)'),
            ("text", "found text"),
        ],
    ),
}  # fmt: skip
ROWS = [(name, row, says) for name, (_, bad) in FORMATS.items() for row, says in bad]


@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize(("name", "row", "says"), ROWS)
def test_a_malformed_row_stops_the_run_with_file_line_and_reason(
    tmp_path: Path, tokenizer: Any, name: str, row: Any, says: str, at: int
) -> None:
    rows = [FORMATS[name][0]] * 8
    source = write(tmp_path / "train.jsonl", [*rows[:at], row, *rows[at:]])
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(source), tokenizer)
    assert f"{source}:{at + 1}: " in caught.value.problem
    assert says in caught.value.problem
    assert "1 bad row, 8 good" in caught.value.problem


def test_bad_lines_and_bad_rows_are_listed_together(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [*pairs(2), {"question": 1, "answer": "a"}])
    path.write_text("oops\n" + path.read_text("utf-8"), encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(str(path)), tokenizer)
    assert "a.jsonl:1:1: Expecting value" in caught.value.problem
    assert "a.jsonl:4: " in caught.value.problem


def test_skipped_rows_are_counted_and_set_aside(tmp_path: Path, tokenizer: Any) -> None:
    bad = {"question": None, "answer": "a"}
    source, side = write(tmp_path / "a.jsonl", [*pairs(2), bad]), tmp_path / "skipped.jsonl"
    prepared = prepare_data(Settings(source, skip_bad=True), tokenizer, side_file=side)
    assert (prepared.report.rows, prepared.report.kept, prepared.report.refused) == (3, 2, 1)
    skipped = json.loads(side.read_text("utf-8"))
    assert (skipped["line"], skipped["row"]) == (3, bad)
    assert prepared.report.side_file == str(side)
    assert "a.jsonl:3" in "\n".join(prepared.report.summary())


def test_what_the_template_refuses_is_named_by_line(tmp_path: Path, tokenizer: Any) -> None:
    good = FORMATS["conversations"][0]["messages"]
    strict = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    strict.eos_token, strict.pad_token, strict.bos_token = "</s>", "<pad>", "<s>"
    strict.chat_template = TEMPLATE.replace("'tool'", "'user' and 'stop' in message.content")
    row = {"messages": [{"role": "user", "content": "stop"}, good[1]]}
    source = write(tmp_path / "a.jsonl", [{"messages": good}, row])
    with pytest.raises(BadInput) as caught:
        prepare_data(Settings(source), strict)
    assert "a.jsonl:2: " in caught.value.problem
    assert "no tools here" in caught.value.problem


def test_a_trusted_role_that_is_none_is_refused_before_any_row(
    tmp_path: Path, tokenizer: Any
) -> None:
    source = write(tmp_path / "a.jsonl", [FORMATS["conversations"][0]])
    with pytest.raises(BadInput, match="'asistant' is no role") as caught:
        prepare_data(Settings(source, trusted_roles="user,asistant"), tokenizer)
    assert "system, user, assistant, tool" in caught.value.remedy


def test_tool_turns_become_text_where_the_template_refuses_them(
    tmp_path: Path, tokenizer: Any
) -> None:
    turns = [("human", "q"), ("function_call", '{"name": "f", "arguments": {}}')]
    turns += [("observation", "42"), ("gpt", "a")]
    row = {"conversations": [{"from": role, "value": value} for role, value in turns]}
    prepared = prepare_data(Settings(write(tmp_path / "a.jsonl", [row])), tokenizer)
    assert learned(tokenizer, prepared.train[0]) == '{"name": "f", "arguments": {}}</s>a</s>'
    assert any("tool calls written as plain text" in note for note in prepared.report.notes)


def test_the_split_follows_from_the_seed_and_shares_no_sample(
    tmp_path: Path, tokenizer: Any
) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(40), *pairs(10)])
    base = Settings(source, eval_split=0.25)
    first, again = prepare_data(base, tokenizer), prepare_data(base, tokenizer)
    other = prepare_data(replace(base, seed=1), tokenizer)
    assert (first.train, first.evaluation) == (again.train, again.evaluation)
    assert first.evaluation != other.evaluation
    assert len(first.evaluation) == 10
    held_out = {tuple(sample["input_ids"]) for sample in first.evaluation}
    assert not held_out.intersection(tuple(sample["input_ids"]) for sample in first.train)
    assert adds_up(first)


def test_a_training_row_that_is_evaluated_on_is_removed_and_counted(
    tmp_path: Path, tokenizer: Any
) -> None:
    train = write(tmp_path / "a.jsonl", pairs(5))
    evaluation = write(tmp_path / "b.jsonl", pairs(7)[3:])
    prepared = prepare_data(Settings(train, eval_data=evaluation), tokenizer)
    assert prepared.report.dropped["the same sample is evaluated on"].count == 2
    assert (len(prepared.train), len(prepared.evaluation)) == (3, 4)
    assert adds_up(prepared)
    with pytest.raises(BadInput, match="every training row is also"):
        prepare_data(Settings(train, eval_data=train), tokenizer)


def test_samples_that_are_evaluated_on_are_counted_where_their_row_stays(
    tmp_path: Path, tokenizer: Any
) -> None:
    start = "one and the same start of both "
    texts = [{"text": start + "one " * 9}, {"text": start + "two " * 9}]
    base = Settings(write(tmp_path / "a.jsonl", texts), max_length=20)
    samples = len(prepare_data(base, tokenizer).train)
    found = [
        prepare_data(replace(base, eval_split=0.2, seed=seed), tokenizer) for seed in range(20)
    ]
    taken = [prepared.report.evaluated_on.count for prepared in found]
    assert any(taken)
    assert not any(prepared.report.dropped for prepared in found)
    for prepared in found:
        kept = len(prepared.train) + len(prepared.evaluation)
        count = prepared.report.evaluated_on
        assert kept + count.count == samples
        said = f"taken out, as equal samples are evaluated on: {count}"
        assert (said in "\n".join(prepared.report.summary())) is bool(count.count)


def test_nothing_can_be_set_aside_of_one_distinct_row(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(1), *pairs(1)])
    with pytest.raises(BadInput, match="only one distinct sample"):
        prepare_data(Settings(source, eval_split=0.5), tokenizer)


def test_repeated_rows_are_counted_and_kept(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(3), *pairs(2)])
    prepared = prepare_data(Settings(source), tokenizer)
    assert prepared.report.duplicates.examples == [f"{source}:4", f"{source}:5"]
    assert len(prepared.train) == 5
    assert "duplicates" in [warning.code for warning in prepared.report.warnings]


def test_a_long_text_is_split_without_losing_a_token(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text("all of these words " * 20, encoding="utf-8")
    whole = prepare_data(Settings(str(path)), tokenizer).train[0]["input_ids"]
    prepared = prepare_data(Settings(str(path), max_length=50), tokenizer)
    first, *later = (sample["input_ids"] for sample in prepared.train)
    assert [*first, *(i for ids in later for i in ids[1:])] == whole
    assert all(b[0] == a[-1] for a, b in zip([first, *later], later, strict=False))
    assert prepared.report.kept == prepared.report.rows == prepared.report.split.count == 1
    assert len(prepared.train) == 8


@settings(max_examples=200 * CASES, deadline=None)
@given(letters=st.integers(1, 60), most=st.integers(2, 20), bos=st.booleans())
def test_every_token_of_a_document_but_its_first_is_learned_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, letters: int, most: int, bos: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "document.txt"
    path.write_text("".join(chr(97 + number % 26) for number in range(letters)), encoding="utf-8")
    policy = TokenizerPolicy(bos="required" if bos else "forbidden")
    family = Architecture(name="any", targets=LoraTargets(attention=("q",)), tokenizer=policy)
    (whole,) = prepare_data(Settings(str(path)), tokenizer, family).train
    prepared = prepare_data(Settings(str(path), max_length=most), tokenizer, family)
    trained = [
        (token, previous)
        for sample in prepared.train
        for previous, token, label in zip(
            sample["input_ids"], sample["input_ids"][1:], sample["labels"][1:], strict=False
        )
        if label == token
    ]
    ids = whole["input_ids"]
    assert len(ids) == letters + bos + 1
    assert trained == list(zip(ids[1:], ids, strict=False))
    assert prepared.report.learned_tokens == len(trained)
    assert all(sample["labels"][0] == -100 for sample in prepared.train)
    assert all(len(sample["input_ids"]) <= most for sample in prepared.train)


def test_an_architecture_brings_the_format_that_a_base_model_lacks(
    tmp_path: Path, tokenizer: Any
) -> None:
    base = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    base.eos_token, base.pad_token = "</s>", "<pad>"
    prompt = PromptFormat(name="plain", user="Q {content}\n", assistant="A {content}{eos}")
    architecture = Architecture(name="any", targets=LoraTargets(attention=("q",)), prompt=prompt)
    source = write(tmp_path / "a.jsonl", pairs(1))
    prepared = prepare_data(Settings(source), base, architecture)
    assert base.decode(prepared.train[0]["input_ids"]) == "Q q0\nA a0</s>"


def test_the_report_is_plain_json(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(3), {"question": "q", "answer": ""}])
    report = prepare_data(Settings(source), tokenizer).report
    values = json.loads(json.dumps(report.to_dict()))
    assert values["files"][0]["rows"] == 4
    assert values["dropped"]["the assistant turn is empty"]["examples"] == [f"{source}:4"]
    assert values["lengths"] == {"min": 11, "median": 11, "p95": 11, "max": 11}


ROW = st.one_of(
    st.fixed_dictionaries({"question": st.text(max_size=30), "answer": st.text(max_size=30)}),
    st.dictionaries(st.sampled_from(["question", "answer", "x"]), st.none() | st.text(max_size=5)),
    st.integers(),
)


@settings(max_examples=100 * CASES, deadline=None)
@given(rows=st.lists(ROW, max_size=15), length=st.integers(8, 60), share=st.sampled_from([0, 0.3]))
def test_every_row_is_kept_dropped_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    rows: list[Any],
    length: int,
    share: float,
) -> None:
    source = write(tmp_path_factory.getbasetemp() / "any.jsonl", [*rows, *pairs(3), *pairs(12)])
    base = Settings(source, max_length=max(length, 12), eval_split=share, skip_bad=True)
    prepared = prepare_data(base, tokenizer)
    assert adds_up(prepared)
    assert prepared.report.rows == len(rows) + 15
    samples = [*prepared.train, *prepared.evaluation]
    assert len({sample["source"] for sample in samples}) == prepared.report.kept
    assert all(any(label != -100 for label in sample["labels"]) for sample in samples)
    assert all(len(sample["input_ids"]) <= base.max_length for sample in samples)


@pytest.mark.parametrize(
    ("file", "form", "rows"),
    [
        ("gsm8k_train_2k.jsonl", "question/answer", 2000),
        ("gsm8k_test.jsonl", "question/answer", 1319),
        ("alpaca_en_demo.json", "Alpaca", 999),
        ("sharegpt_toolcall_demo.json", "ShareGPT", 300),
    ],
)
def test_real_data_is_recognised_and_fully_accounted_for(
    shared: Path, tokenizer: Any, file: str, form: str, rows: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    tokenizer.chat_template = TEMPLATE
    source = str(shared / "instruct" / file)
    whole = prepare_data(Settings(source), tokenizer)
    assert whole.report.formats[source].startswith(form)
    assert (whole.report.rows, whole.report.kept, len(whole.train)) == (rows, rows, rows)
    short = prepare_data(Settings(source, max_length=256, eval_split=0.1), tokenizer)
    assert adds_up(short)
    assert short.report.dropped
    assert short.report.cut.count
