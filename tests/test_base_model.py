"""The embedded base model: what made it, what it knows, and what it cannot do."""

import itertools
import json
from pathlib import Path

import pytest
import qlora_base
from qlora_base.documents import documents
from qlora_base.questions import (
    Question,
    held_out_questions,
    held_out_sums,
    mentions_held_out,
    read_questions,
    training_questions,
    write_data,
)
from qlora_base.world import RELATIONS, make_world

SAMPLE = 60
WORLD = make_world()


@pytest.fixture(scope="module")
def base():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(qlora_base.MODEL)
    return model, AutoTokenizer.from_pretrained(qlora_base.MODEL)


def test_the_world_follows_from_its_seed():
    assert make_world(3) == make_world(3)
    assert make_world(3) != make_world(4)


def test_the_documents_follow_from_their_seed():
    first, again, other = (list(itertools.islice(documents(seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_entity_has_every_fact_of_its_kind():
    expected = {(name, one.attribute) for one in RELATIONS for name in WORLD.names[one.kind]}
    assert set(WORLD.facts) == expected


def test_no_training_row_mentions_a_held_out_name_or_number():
    rows = read_questions(qlora_base.TRAINING_ROWS)
    assert [row for row in rows if mentions_held_out(WORLD, row)] == []


def test_a_mention_is_found_in_question_and_answer():
    name = min(WORLD.held_out_names)
    number = min(WORLD.held_out_numbers)
    assert mentions_held_out(WORLD, Question(f"Where does {name} live?", "x"))
    assert mentions_held_out(WORLD, Question("Where does nobody live?", name))
    assert mentions_held_out(WORLD, Question(f"What is {number} plus 1?", "x"))
    assert not mentions_held_out(WORLD, Question("Where does nobody live?", "x"))


def test_every_held_out_question_is_about_a_held_out_name_or_held_out_numbers_only():
    for question in read_questions(qlora_base.HELD_OUT_ROWS):
        numbers = {int(word.strip("?,")) for word in question.question.split() if word[0].isdigit()}
        named = any(name in question.question for name in WORLD.held_out_names)
        assert named or (numbers and numbers <= WORLD.held_out_numbers), question


def test_no_question_is_asked_twice():
    for questions in (training_questions(WORLD), held_out_questions(WORLD)):
        assert len(questions) == len(set(questions))


def test_the_held_out_sums_occur_nowhere_in_the_pretraining_text():
    text = "\n".join(itertools.islice(documents(0), 20_000))
    for task in held_out_sums(WORLD):
        assert f"\n{task.left} {task.sign} {task.right} = " not in text
        assert f"What is {task.left} plus {task.right}?" not in text or task.sign != "+"
        assert f"What is {task.left} minus {task.right}?" not in text or task.sign != "-"
        assert f"larger, {task.left} or {task.right}?" not in text or task.sign != ">"


def test_the_shipped_rows_are_what_the_seed_gives(tmp_path: Path):
    write_data(tmp_path)
    for shipped in (qlora_base.TRAINING_ROWS, qlora_base.HELD_OUT_ROWS):
        assert shipped.read_bytes() == (tmp_path / shipped.name).read_bytes()


def test_the_package_holds_at_most_16_megabytes():
    files = [path for path in qlora_base.MODEL.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000


def test_the_curve_beside_the_weights_says_how_they_were_made():
    report = json.loads((qlora_base.MODEL / "training_curve.json").read_text())
    assert report["recipe"]["seed"] == 0
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"]
    assert report["curve"][-1]["tokens"] == report["tokens"]


def test_the_chat_template_uses_no_token_that_pretraining_left_out(base):
    _, tokenizer = base
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    used = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
    seen = tokenizer(list(itertools.islice(documents(0), 2_000)))["input_ids"]
    assert set(used) <= {tokenizer.eos_token_id, *itertools.chain.from_iterable(seen)}


def test_the_base_answers_as_plain_text(base):
    from qlora_base.evaluate import few_shot_accuracy

    questions = read_questions(qlora_base.HELD_OUT_ROWS)[:SAMPLE]
    result = few_shot_accuracy(*base, questions, read_questions(qlora_base.TRAINING_ROWS))
    assert result.accuracy >= 0.6


def test_the_base_does_not_answer_in_the_chat(base):
    from qlora_base.evaluate import chat_accuracy

    result = chat_accuracy(*base, read_questions(qlora_base.HELD_OUT_ROWS)[:SAMPLE])
    assert result.accuracy <= 0.1


def test_an_answer_without_an_end_does_not_count():
    from qlora_base.evaluate import Sample

    assert Sample("?", "4", "4", stopped=True).correct
    assert not Sample("?", "4", "4", stopped=False).correct
    assert not Sample("?", "4", "4 4", stopped=True).correct
