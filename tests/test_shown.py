"""Tools, calls, results and reasoning that a template leaves out are written as text, or said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qlora_core import TrainSettings
from qlora_core.data.encode import IGNORED, encode_conversation
from qlora_core.data.notes import MEANINGS, REASONING_DROPPED
from qlora_core.data.plain_turns import ALL_WRITTEN, TOOLS_WRITTEN
from qlora_core.data.prepare import PreparedData, prepare_data
from qlora_core.errors import BadInput
from qlora_core.facts.prompt import PLAIN_PROMPT
from qlora_core.testing.tokenizers import toy_tokenizer

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
START, END = "{{ '<|im_start|>' + m.role + '\n' }}", "{{ '<|im_end|>\n' }}"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function | tojson }}{% endfor %}"
LISTED = "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"


def template(turn: str, before: str = LISTED) -> str:
    """A template that writes ``turn`` between the marks of a turn."""
    return before + "{% for m in messages %}" + START + turn + END + "{% endfor %}" + ASKS


KNOWS_ALL = template("{{ m.content }}" + CALLS)
KNOWS_NONE = template("{{ m.content }}", before="")
ACTS_ONLY = template(
    "{{ raise_exception('act') if m.role == 'assistant' and not m.tool_calls }}"
    "{{ m.content }}" + CALLS
)
NO_LIST = template("{{ m.content }}" + CALLS, before="")
FIRST_CALL = template(
    "{{ m.content }}" + CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
)
NAMES_ONLY = template("{{ m.content }}" + CALLS.replace("c.function | tojson", "c.function.name"))
CALLS_ALONE = template("{% if m.tool_calls %}" + CALLS + "{% else %}{{ m.content }}{% endif %}")
TEXT_LAST = template(CALLS + "{{ m.content }}")
NO_RESULTS = template("{{ m.content if m.role != 'tool' }}" + CALLS)
THINKS = "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content }}"
THOUGHTS = template(THINKS + "{{ m.content }}" + CALLS)
LAST_THOUGHT = template(THINKS.replace(" }}", " and loop.last }}") + "{{ m.content }}" + CALLS)
CUTS_THOUGHTS = template("{{ m.content.split('</think>')[-1] }}")

QUESTION = {"role": "user", "content": "Search"}
ANSWER = {"role": "assistant", "content": "Three"}
RESULT = {"role": "tool", "content": "3 cats"}
FIELDS = {"type": "object", "properties": {"q": {"type": "string", "description": "What"}}}
LOOK_UP = {"name": "look_up", "description": "Looks things up", "parameters": FIELDS}
TOOLS = [{"type": "function", "function": LOOK_UP}]
THOUGHT = {**ANSWER, "reasoning_content": "I count them"}


def call(name: str = "find", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def asking(*calls: dict[str, Any], content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def prepared(folder: Path, tokenizer: Any, *rows: dict[str, Any]) -> PreparedData:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = TrainSettings(model="m", data=str(source), output="o", offline=True)
    return prepare_data(settings, tokenizer)


def taught(folder: Path, source: str, *messages: dict[str, Any], tools: Any = None) -> Any:
    """The text of one conversation, the learned part of it, and what the report says of it."""
    tokenizer = toy_tokenizer("byte-level", source, **ROLES)
    data = prepared(folder, tokenizer, {"messages": messages, "tools": tools})
    (sample,) = data.train
    learned = [label for label in sample["labels"] if label != IGNORED]
    return tokenizer.decode(sample["input_ids"]), tokenizer.decode(learned), [*data.report.notes]


def test_a_call_is_missed_although_its_values_stand_in_the_text_by_chance(tmp_path):
    chance = call(lang="en", filter="", kind="user")  # in <|im_end|>, everywhere, in a header
    _, learned, notes = taught(tmp_path, KNOWS_NONE, QUESTION, asking(chance), RESULT, ANSWER)
    assert learned.startswith('{"name": "find", "arguments": {"lang": "en"')
    assert ALL_WRITTEN in notes


def test_a_call_with_an_empty_argument_is_learned_as_the_template_writes_it(tmp_path):
    _, learned, notes = taught(tmp_path, KNOWS_ALL, QUESTION, asking(call(query="")))
    assert learned.startswith('<call>{"name": "find"')
    assert learned.endswith('{"query": ""}}<|im_end|>')
    assert not {ALL_WRITTEN, MEANINGS["end-of-turn-appended"]} & {*notes}


IN_PART = {
    "the second call": (FIRST_CALL, asking(call(q="one"), call("count", q="two"))),
    "its text": (NAMES_ONLY, asking(call(q="one"))),
    "its number": (NAMES_ONLY, asking(call(limit=5))),
    "the text beside it": (CALLS_ALONE, asking(call(q="one"), content="I look")),
    "its place": (TEXT_LAST, asking(call(q="one"), content="I look")),
}


@pytest.mark.parametrize("lost", IN_PART)
def test_a_call_that_is_shown_in_part_is_written_whole_as_text(tmp_path, lost):
    source, turn = IN_PART[lost]
    _, learned, notes = taught(tmp_path, source, QUESTION, turn, RESULT, ANSWER)
    assert turn["content"] in learned
    for each in turn["tool_calls"]:
        assert json.dumps(each["function"]) in learned
    assert ALL_WRITTEN in notes


@pytest.mark.parametrize("after", [[], [RESULT]])
def test_a_turn_that_calls_with_an_empty_argument_ends_once(tmp_path, after):
    """No other turn stands in for it here, so its end is told by where its values end."""
    _, learned, notes = taught(tmp_path, ACTS_ONLY, QUESTION, asking(call(query="")), *after)
    assert learned == '<call>{"name": "find", "arguments": {"query": ""}}<|im_end|>'
    assert MEANINGS["end-of-turn-appended"] not in notes


def test_a_template_that_shows_everything_is_left_to_it(tmp_path):
    turns = QUESTION, asking(call(q="one", n=2), call("count", on=True), content="I look"), RESULT
    text, learned, notes = taught(tmp_path, KNOWS_ALL, *turns, ANSWER, tools=TOOLS)
    assert learned.count("<call>") == 2
    assert "look_up" in text
    assert not {ALL_WRITTEN, TOOLS_WRITTEN} & {*notes}


@pytest.mark.parametrize(("shows", "written"), [(True, False), (False, True)])
def test_a_template_that_refuses_the_marks_is_believed_where_all_data_stand(
    tmp_path, shows, written
):
    """It takes one name alone, so that no mark can stand behind it."""
    only = "{% for c in m.tool_calls or [] if c.function.name != 'find' %}"
    source = template(
        only + "{{ raise_exception('who?') }}{% endfor %}{{ m.content }}" + shows * CALLS
    )
    turns = QUESTION, asking(call(q="one")), RESULT, ANSWER
    _, learned, notes = taught(tmp_path, source, *turns)
    assert ("<call>" in learned) == shows
    assert '"q": "one"' in learned
    assert (ALL_WRITTEN in notes) == written


def test_tools_that_are_never_called_reach_the_model_too(tmp_path):
    text, learned, notes = taught(tmp_path, KNOWS_NONE, QUESTION, ANSWER, tools=TOOLS)
    assert "Functions that you may call:" in text
    assert "look_up" in text
    assert learned == "Three<|im_end|>"
    assert TOOLS_WRITTEN in notes
    assert ALL_WRITTEN not in notes


def test_where_only_the_tools_are_left_out_calls_stay_the_templates_own(tmp_path):
    turns = QUESTION, asking(call(q="one")), RESULT, ANSWER
    text, learned, notes = taught(tmp_path, NO_LIST, *turns, tools=TOOLS)
    assert learned.startswith('<call>{"name": "find"')
    assert "look_up" in text
    assert TOOLS_WRITTEN in notes


def test_a_result_that_the_template_leaves_out_is_written_as_text(tmp_path):
    action = {"role": "assistant", "content": "Action: look"}
    text, _, notes = taught(tmp_path, NO_RESULTS, QUESTION, action, RESULT, ANSWER)
    assert "<|im_start|>user\n3 cats" in text
    assert ALL_WRITTEN in notes


def thinking(thought: str) -> dict[str, Any]:
    return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\nThree"}


REASONED = {
    "left out": (KNOWS_ALL, [QUESTION, THOUGHT], True),
    "left out of an earlier turn": (LAST_THOUGHT, [QUESTION, THOUGHT] * 2, True),
    "left out of a text": (CUTS_THOUGHTS, [QUESTION, thinking("I count")], True),
    "shown": (THOUGHTS, [QUESTION, THOUGHT] * 2, False),
    "empty": (CUTS_THOUGHTS, [QUESTION, thinking("")], False),
}


@pytest.mark.parametrize("reasoning", REASONED)
def test_reasoning_that_is_left_out_is_counted(tmp_path, reasoning):
    source, turns, said = REASONED[reasoning]
    _, learned, notes = taught(tmp_path, source, *turns)
    assert (MEANINGS[REASONING_DROPPED] in notes) == said
    assert "Three<|im_end|>" in learned


def test_calls_written_as_text_keep_their_reasoning(tmp_path):
    thinking = asking(call(q="one"), reasoning_content="I must look")
    source = THOUGHTS.replace(CALLS, "")
    _, learned, notes = taught(tmp_path, source, QUESTION, thinking, RESULT, ANSWER)
    assert learned.startswith('<think>I must look</think>{"name": "find"')
    assert ALL_WRITTEN in notes
    assert MEANINGS[REASONING_DROPPED] not in notes


def test_reasoning_that_is_left_out_is_said_of_one_conversation_too():
    tokenizer = toy_tokenizer("byte-level", KNOWS_ALL, **ROLES)
    encoded = encode_conversation(tokenizer, [QUESTION, THOUGHT])
    assert encoded.notes == (REASONING_DROPPED,)


@pytest.mark.parametrize("name", ["plain", "trl/phi3", "llama.cpp/google-gemma-2-2b-it"])
def test_real_rows_keep_their_tools_and_calls_with_templates_that_know_none(
    shared: Path, tmp_path: Path, name: str
) -> None:
    rows = json.loads((shared / "instruct" / "sharegpt_toolcall_demo.json").read_text("utf-8"))
    jinja = shared / "prompts" / "jinja" / f"{name}.jinja"
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2")
    tokenizer.chat_template = PLAIN_PROMPT.jinja() if name == "plain" else jinja.read_text("utf-8")
    data = prepared(tmp_path, tokenizer, *rows[::3])
    assert data.report.kept == len(data.train) == 100
    for row, sample in zip(rows[::3], data.train, strict=True):
        learned = tokenizer.decode([i for i in sample["labels"] if i != IGNORED])
        text = tokenizer.decode(sample["input_ids"])
        assert all(tool["name"] in text for tool in json.loads(row.get("tools") or "[]"))
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                assert json.loads(turn["value"])["name"] in learned


OF_TOOLS: dict[str, tuple[list[dict[str, Any]], list[str], list[str]]] = {
    "calls at once": (
        [asking(call(q="AAA"), call("count", n=417)), RESULT, RESULT, ANSWER],
        ["find", "AAA", "count", "417"], ["3 cats", "look_up"],
    ),
    "a text beside": (
        [asking(call(q="AAA"), content="I look"), RESULT, ANSWER],
        ["I look", "find", "AAA"], ["3 cats", "look_up"],
    ),
    "an empty argument": ([asking(call(q="")), RESULT, ANSWER], ["find"], ["3 cats", "look_up"]),
    "an action in words": (
        [{"role": "assistant", "content": "Action: look"}, RESULT, ANSWER],
        ["Action: look"], ["3 cats", "look_up"],
    ),
    "no call": ([ANSWER], ["Three"], ["look_up"]),
}  # fmt: skip
BROKEN = {"MiroThinker", "fireworks-ai-llama-3-firefunction-v2"}
"""They want variables of their own, whatever the conversation."""
NEED_TOOLS = {
    f"NousResearch-Hermes-{name}-tool_use" for name in ("2-Pro-Llama-3-8B", "3-Llama-3.1-8B")
}
"""Their tokenizers have another template for conversations without tools."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_TOOLS)
def test_108_templates_lose_nothing_of_tools_or_refuse_in_their_own_words(
    shared: Path, tmp_path: Path, kind: str
) -> None:
    turns, learns, shows = OF_TOOLS[kind]
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2")
    refused = {}
    for path in sorted((shared / "prompts" / "jinja").glob("*/*.jinja")):
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        try:
            data = prepared(tmp_path, tokenizer, {"messages": [QUESTION, *turns], "tools": TOOLS})
        except BadInput as error:
            refused[path.stem] = error.problem
            continue
        learned = tokenizer.decode([i for i in data.train[0]["labels"] if i != IGNORED])
        text = tokenizer.decode(data.train[0]["input_ids"])
        assert all(word in learned for word in learns), path.stem
        assert all(word in text for word in shows), path.stem
    assert refused.keys() >= BROKEN
    for name in refused.keys() - BROKEN - NEED_TOOLS:  # two results are two questions in a row
        assert kind == "calls at once"
        assert "alternat" in refused[name]
