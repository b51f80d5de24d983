"""Control tokens come from the template, never from what somebody wrote."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qlora_core.data.backend import Backend
from qlora_core.data.encode import encode_conversation, encode_text
from qlora_core.testing.tokenizers import KINDS, MARKUP, SPECIAL, toy_tokenizer

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}"
)
THINKING = (  # as reasoning models have it: the template reads the end of the thoughts
    "{% for m in messages %}{% set c = m['content'] %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "<think>\n{{ c.split('</think>')[0].split('<think>')[-1] | trim }}\n</think>\n\n"
    "{{ c.split('</think>')[-1] | trim }}"
    "{% else %}{{ c }}{% endif %}<|im_end|>\n{% endfor %}"
)
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return first + [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]


def control(tokenizer, ids) -> list[str]:
    added = {i: token for token, i in tokenizer.get_added_vocab().items()}
    return [added[i] for i in ids if i in added and added[i] != tokenizer.unk_token]


@pytest.fixture(scope="module", params=sorted(KINDS))
def tokenizer(request):
    return toy_tokenizer(request.param, CHATML, **ROLES)


parts = st.sampled_from([*SPECIAL, *MARKUP, " ", "a", "|", "<", ">", "im_end", "<|im_", "</", "s>"])
attacks = st.lists(parts, min_size=1, max_size=12).map("".join)
CLEAN = ["<|im_start|>", "<|im_end|>"]


@QUICK
@given(attack=attacks, role=st.integers(0, 2))
def test_no_text_becomes_a_control_token(tokenizer, attack, role):
    texts = ["Sys", "Q", "A"]
    texts[role] += attack
    system, question, answer = texts
    encoded = encode_conversation(tokenizer, chat(question, answer, system=system))
    assert control(tokenizer, encoded.input_ids) == CLEAN * 3
    if all(token not in attack for token in tokenizer.get_added_vocab()):
        plain = tokenizer(encoded.text, add_special_tokens=False).input_ids
        assert plain == encoded.input_ids


@QUICK
@given(attack=attacks)
def test_an_attack_decodes_to_itself(tokenizer, attack):
    encoded = encode_conversation(tokenizer, chat(f"Q{attack}", "A"))
    assert tokenizer.decode(encoded.input_ids) == encoded.text


@QUICK
@given(attack=attacks)
def test_raw_text_holds_no_control_token_but_its_end(tokenizer, attack):
    encoded = encode_text(tokenizer, f"T{attack}")
    assert control(tokenizer, encoded.input_ids) == ["</s>"]


def test_3000_random_strings_leak_nothing(tokenizer):
    draw = random.Random(0)
    pieces = [*SPECIAL, *MARKUP, "hello", " ", "\n", "|>", "<|", "é"]
    leaks = 0
    for _ in range(1000):
        text = "".join(draw.choices(pieces, k=6))
        encoded = encode_conversation(tokenizer, chat(f"Q{text}", f"A{text}"))
        leaks += control(tokenizer, encoded.input_ids) != CLEAN * 2
    assert leaks == 0


def test_around_an_attack_all_other_ids_stay(tokenizer):
    clean = encode_conversation(tokenizer, chat("before. after", "Hello"))
    dirty = encode_conversation(tokenizer, chat("before.</s> after", "Hello"))
    assert "injection-neutralised" in dirty.notes
    first = shared_start(clean.input_ids, dirty.input_ids)
    last = shared_start(clean.input_ids[::-1], dirty.input_ids[::-1])
    assert first >= 5
    assert last >= len(clean.input_ids) - first - 3
    assert clean.labels[-last:] == dirty.labels[-last:]


def shared_start(a: list[int], b: list[int]) -> int:
    return next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def test_trusted_roles_may_write_control_tokens(tokenizer):
    messages = chat("Q <think>", "<think>why</think>A")
    closed = encode_conversation(tokenizer, messages)
    assert "control-token-in-answer-neutralised" in closed.notes
    assert control(tokenizer, closed.input_ids) == CLEAN * 2
    opened = encode_conversation(tokenizer, messages, trusted_roles=("assistant",))
    assert control(tokenizer, opened.input_ids) == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|im_end|>",
    ]  # fmt: skip


def test_what_the_template_reads_in_an_answer_stays_and_the_rest_does_not(tokenizer):
    thinking = toy_tokenizer("byte-level", THINKING, **ROLES)
    messages = chat("Q", "<think>\nwhy <|im_end|>\n</think>\n\nA </s>")
    encoded = encode_conversation(thinking, messages)
    assert control(thinking, encoded.input_ids) == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|im_end|>",
    ]  # fmt: skip
    assert "control-token-read-by-template" in encoded.notes


def test_tool_calls_results_and_descriptions_are_texts_too(tokenizer):
    source = "{{ (tools or []) | tojson }}" + CHATML.replace(
        "m['content']", "m['content'] + (m['tool_calls'] | tojson if m['tool_calls'] else '')"
    )
    tools = toy_tokenizer("byte-level", source, **ROLES)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "</s>"}}}
    messages = [
        *chat("Q"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<|im_end|>12"},
        *chat("Q", "A")[1:],
    ]
    description = [{"type": "function", "function": {"name": "f", "description": "<think>"}}]
    encoded = encode_conversation(tools, messages, tools=description)
    assert control(tools, encoded.input_ids) == CLEAN * 4


def test_white_space_and_words_are_no_control_tokens(tokenizer):
    spaced = toy_tokenizer("byte-level", CHATML, markup=["  ", "    ", "hello"], **ROLES)
    messages = chat("def f():\n    return  1", "hello")
    encoded = encode_conversation(spaced, messages)
    assert encoded.notes == ()
    assert spaced(encoded.text, add_special_tokens=False).input_ids == encoded.input_ids


def test_unigram_finds_no_control_token_in_its_own_vocabulary():
    unigram = toy_tokenizer("unigram", CHATML, **ROLES)
    backend = Backend(unigram)
    kept = backend.encode_inert("a </s> <s> b", []).ids
    assert not set(kept) & {unigram.bos_token_id, unigram.eos_token_id}


@pytest.mark.parametrize("name", ["llama2", "falcon", "gpt2", "gpt-neox"])
def test_every_added_token_of_real_tokenizers_is_inert_in_every_role(shared: Path, name):
    real = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    real.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    )
    benign = {t for t in real.get_added_vocab() if not t.strip()}
    attack = " x ".join(t for t in real.get_added_vocab() if t not in benign)
    assert attack
    ends = {real.eos_token}
    for role in range(3):
        texts = ["Sys", "Q", "A"]
        texts[role] += attack
        system, question, answer = texts
        encoded = encode_conversation(real, chat(question, answer, system=system))
        found = [t for t in control(real, encoded.input_ids) if t not in benign]
        assert set(found) <= ends
        assert len(found) == 3 * (real.eos_token != real.unk_token)
        assert real.decode(encoded.input_ids) == encoded.text
