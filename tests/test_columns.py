"""The format of rows is told by their columns; every row that is not in it says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_core.data.columns import RANKS, TARGETS, Columns, parse_mapping, recognise
from qlora_core.data.json_rows import Row
from qlora_core.data.plain_turns import as_plain_turns
from qlora_core.data.turns import (
    Conversation,
    Malformed,
    NothingToLearn,
    conversation_of,
    text_of,
)
from qlora_core.errors import BadInput

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [USER, ASSISTANT]


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row("train.jsonl", line, v) for line, v in enumerate(values, start=1)]


def read(values: dict[str, Any], columns: Any = None) -> Conversation:
    return conversation_of(values, recognise(rows(values), columns=columns))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"messages": PAIR}, "conversations"),
        ({"messages": PAIR, "tools": None, "prompt": "q", "id": 3}, "conversations"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "ShareGPT"),
        ({"instruction": "q", "input": "", "output": "a"}, "Alpaca"),
        ({"instruction": "q", "output": "a", "text": "q a"}, "Alpaca"),
        ({"instruction": "q", "context": "", "response": "a"}, "instruction/response"),
        ({"prompt": "q", "completion": "a"}, "prompt/completion"),
        ({"prompt": "q", "response": "a"}, "prompt/response"),
        ({"question": "q", "answer": "a", "id": 1}, "question/answer"),
        ({"input": "q", "output": "a"}, "input/output"),
        ({"text": "words", "meta": {}}, "text"),
    ],
)
def test_a_format_is_recognised_by_its_columns(values: dict[str, Any], name: str) -> None:
    assert name == recognise(rows(values)).name


def test_one_strange_row_does_not_change_the_format() -> None:
    strange, usual = {"qestion": "q", "answer": "a"}, {"question": "q", "answer": "a"}
    assert recognise(rows(strange, usual, usual)).name == "question/answer"


def test_two_fitting_formats_are_an_error_that_names_both() -> None:
    values = {"prompt": "p", "completion": "c", "question": "q", "answer": "a"}
    with pytest.raises(BadInput) as caught:
        recognise(rows(values))
    assert "prompt/completion" in caught.value.problem
    assert "question/answer" in caught.value.problem
    assert "--columns prompt=user,completion=assistant" in caught.value.remedy


def test_unknown_columns_are_an_error_that_lists_them_and_the_formats() -> None:
    with pytest.raises(BadInput) as caught:
        recognise(rows({"frage": "q", "antwort": "a"}))
    assert "frage, antwort" in caught.value.problem
    assert "Alpaca ([system], [history], instruction, [input], output)" in caught.value.problem
    assert "--columns frage=user,antwort=assistant" in caught.value.remedy


def test_columns_map_any_names() -> None:
    values = {"frage": "q", "kontext": "c", "antwort": "a", "stil": "s"}
    mapping = "stil=system,frage=user,kontext=user,antwort=assistant"
    expected = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q\n\nc"},
        {"role": "assistant", "content": "a"},
    ]
    assert expected == read(values, mapping).messages
    as_table = dict(pair.split("=") for pair in mapping.split(","))
    assert expected == read(values, as_table).messages


def test_columns_map_a_conversation_and_a_text() -> None:
    assert read({"chosen": PAIR, "rejected": PAIR}, "chosen=messages").messages == PAIR
    columns = recognise(rows({"body": "words"}), columns={"body": "text"})
    assert text_of({"body": "words"}, columns) == "words"


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ("frage", "is not COLUMN=TARGET"),
        ("frage=user,", "is not COLUMN=TARGET"),
        ("=user", "is not COLUMN=TARGET"),
        ("frage=usr,antwort=assistant", "did you mean user?"),
        ("frage=user", "nothing to learn from"),
        ("frage=text,antwort=assistant", "text stands alone"),
        ("frgae=user,antwort=assistant", "did you mean 'frage'?"),
    ],
)
def test_a_mapping_that_makes_no_sense_says_why(mapping: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        recognise(rows({"frage": "q", "antwort": "a"}), columns=mapping)
    assert says in str(caught.value)


def test_sharegpt_turns_become_messages_with_tool_calls() -> None:
    values = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
        "system": "s",
    }
    result = read(values)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert [
        {"role": "system", "content": "s"},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
        ASSISTANT,
    ] == result.messages
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert [tool] == result.tools


def test_arguments_in_json_text_become_an_object() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    message = read({"messages": [USER, turn]}).messages[1]
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert message["tool_calls"][0]["id"] == "1"
    assert message["content"] == ""


@pytest.mark.parametrize("value", [{"x": 1}, '{"x": 1}'])
def test_arguments_may_be_called_parameters(value: Any) -> None:
    for bare in ({"name": "f", "parameters": value}, {"name": "f", "arguments": None}):
        bare = {**bare, "parameters": value}
        for call in (bare, {"type": "function", "function": bare}):
            result = read({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
            assert result.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
            assert not [note for note in result.notes if "ignored" in note]
    turn = {"from": "function_call", "value": json.dumps(bare)}
    called = read({"conversations": [{"from": "human", "value": "q"}, turn]}).messages[1]
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


def test_an_unknown_key_of_a_call_is_named() -> None:
    inner = {"name": "f", "arguments": {}, "parameters": {"x": 1}, "strict": True, "note": None}
    call = {"id": "1", "type": "function", "index": 0, "function": inner}
    result = read({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    ignored = [note for note in result.notes if "ignored" in note]
    names = ("index", "parameters", "strict")
    assert ignored == [f'the key "{name}" of a tool call is ignored' for name in names]


def test_a_function_call_turn_keeps_its_reasoning() -> None:
    turn = {"from": "function_call", "value": '{"name": "f"}', "reasoning_content": "because"}
    result = read({"conversations": [{"from": "human", "value": "q"}, turn]})
    assert result.messages[1]["reasoning_content"] == "because"


def test_tools_can_be_written_as_plain_turns() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "4"}]
    plain = as_plain_turns(read({"messages": messages, "tools": [{"name": "f"}]}))
    assert plain is not None
    assert [turn["role"] for turn in plain] == ["system", "user", "assistant", "user"]
    assert plain[2]["content"] == '{"name": "f", "arguments": {"x": 1}}'
    assert '"name": "f"' in plain[0]["content"]
    assert as_plain_turns(read({"messages": PAIR})) is None


def test_alpaca_history_and_message_lists_keep_their_order() -> None:
    values = {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]]}
    contents = [message["content"] for message in read(values).messages]
    assert contents == ["q0", "a0", "q\n\ni", "a"]
    assert read({"prompt": [USER], "completion": [ASSISTANT]}).messages == PAIR


def test_messages_may_be_json_text_as_in_a_csv_cell() -> None:
    text = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    assert read({"messages": text}).messages == PAIR


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    turn = {"role": "user", "content": parts}
    assert read({"messages": [turn, ASSISTANT]}).messages[0]["content"] == "one two"


# what is wrong with a row -> (the row, what must be said about it)
MESSAGES: dict[str, tuple[Any, str]] = {
    "messages is null": (None, '"messages" is null'),
    "messages is text": ("hello", "messages is not JSON"),
    "messages is a number": (3, "must be a list of turns, found the number 3"),
    "messages is an object": (USER, "must be a list of turns, found an object"),
    "no turn at all": ([], "found an empty list"),
    "a turn is text": ([USER, "hello"], "messages[1] is text"),
    "a turn is null": ([None], "messages[0] is null"),
    "a turn is a list": ([[USER]], "messages[0] is a list"),
    "no role": ([{"content": "q"}], 'messages[0] has no "role" (found: content)'),
    "role misspelt": ([{"rol": "user", "content": "q"}], 'has no "role" (found: rol, content)'),
    "unknown role": ([{"role": "narrator", "content": "q"}], "unknown role 'narrator'"),
    "role in capitals": ([{"role": "User", "content": "q"}], "unknown role 'User'"),
    "role is a number": ([{"role": 1, "content": "q"}], "unknown role '1'"),
    "role is a list": ([{"role": ["user"], "content": "q"}], "unknown role"),
    "content missing": ([{"role": "user"}, ASSISTANT], "messages[0].content"),
    "content misspelt": ([{"role": "user", "contnet": "q"}, ASSISTANT], "is null, expected text"),
    "content is null": ([{"role": "user", "content": None}, ASSISTANT], "is null, expected text"),
    "content is a number": ([USER, {"role": "assistant", "content": 42}], "is the number 42"),
    "content is true": ([USER, {"role": "assistant", "content": True}], "is true"),
    "content is an object": ([USER, {"role": "assistant", "content": {"text": "a"}}], "an object"),
    "content has an image": ([{"role": "user", "content": [{"type": "image"}]}], "not text"),
    "call without name": ([USER, {"role": "assistant", "tool_calls": [{}]}], "needs a name"),
    "calls are no list": ([USER, {"role": "assistant", "tool_calls": "f()"}], "must be a list"),
    "arguments are broken": (
        [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}],
        "the arguments of f is not JSON",
    ),
    "call is broken": ([USER, {"from": "function_call", "value": "f("}], "is not JSON"),
}  # fmt: skip
EMPTY: dict[str, tuple[Any, str]] = {
    "user turn empty": ([{"role": "user", "content": " "}, ASSISTANT], "the user turn is empty"),
    "answer empty": ([USER, {"role": "assistant", "content": ""}], "the assistant turn is empty"),
    "no assistant turn": ([USER], "no assistant turn"),
}
PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "answer missing": ({"question": "q"}, 'the column "answer" is missing (found: question)'),
    "answer misspelt": ({"question": "q", "anwser": "a"}, 'the column "answer" is missing'),
    "answer is null": ({"question": "q", "answer": None}, '"answer" is null'),
    "answer is a number": ({"question": "q", "answer": 18}, "the number 18, expected text"),
    "answer is false": ({"question": "q", "answer": False}, "false, expected text"),
    "answer is a list": ({"question": "q", "answer": ["a"]}, "answer[0] is text"),
    "answer is an object": ({"question": "q", "answer": {"text": "a"}}, "an object"),
    "question is null": ({"question": None, "answer": "a"}, '"question" is null'),
    "empty row": ({}, "(found: nothing)"),
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_a_malformed_conversation_says_where(fault: str) -> None:
    messages, reason = MESSAGES[fault]
    with pytest.raises(Malformed) as caught:
        read({"messages": messages})
    assert reason in str(caught.value)


@pytest.mark.parametrize("fault", EMPTY)
def test_a_conversation_that_teaches_nothing_says_why(fault: str) -> None:
    messages, reason = EMPTY[fault]
    with pytest.raises(NothingToLearn) as caught:
        read({"messages": messages})
    assert reason in str(caught.value)


@pytest.mark.parametrize("fault", PAIRS)
def test_a_malformed_pair_says_which_column(fault: str) -> None:
    values, reason = PAIRS[fault]
    columns = parse_mapping("question=user,answer=assistant")
    with pytest.raises(Malformed) as caught:
        conversation_of(values, columns)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "note"),
    [
        ([USER, USER, ASSISTANT], "two user turns in a row"),
        ([USER, ASSISTANT, ASSISTANT], "two assistant turns in a row"),
        ([ASSISTANT, USER, ASSISTANT], "the conversation starts with the assistant"),
        ([USER, ASSISTANT, USER], "the conversation ends without an answer"),
        ([USER, {"role": "system", "content": "s"}, ASSISTANT], "a system turn after the first"),
        ([{"role": "system", "content": ""}, *PAIR], "an empty system turn is left out"),
        ([USER, {**ASSISTANT, "weight": 0}], 'the key "weight" of a turn is ignored'),
    ],
)
def test_a_strange_order_is_kept_and_noted(messages: list[Any], note: str) -> None:
    assert any(note in found for found in read({"messages": messages}).notes)


def test_the_usual_conversation_has_no_note() -> None:
    system = {"role": "system", "content": "s"}
    assert read({"messages": [system, *PAIR, *PAIR]}).notes == []


def test_a_text_column_must_hold_text() -> None:
    columns = Columns("text", recognise(rows({"text": "words"})).columns)
    with pytest.raises(NothingToLearn):
        text_of({"text": " \n"}, columns)
    with pytest.raises(Malformed, match="is the number 7"):
        text_of({"text": 7}, columns)


def test_every_format_is_documented_with_its_columns() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text("utf-8")
    documented = {
        cells[1].strip(): set(re.findall(r"`(\w+)`", cells[2]))
        for cells in (line.split("|") for line in page.splitlines() if line.count("|") == 4)
    }
    formats = {f.name: {column.name for column in f.columns} for rank in RANKS for f in rank}
    assert formats == {name: documented.get(name) for name in formats}
    assert all(f"`{target}`" in page for target in TARGETS)
