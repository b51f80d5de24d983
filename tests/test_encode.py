"""What is learned is the answer and the token that ends its turn, whatever the text holds."""

from __future__ import annotations

import string
from itertools import dropwhile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from qlora_core import PromptFormat, TokenizerPolicy
from qlora_core.data.encode import IGNORED, encode_conversation, encode_text
from qlora_core.errors import BadInput
from qlora_core.testing.tokenizers import KINDS, toy_tokenizer

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
INST = (  # one BOS in the text, answers trimmed, a space before the end token
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ (bos_token if loop.first else '') + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
TEMPLATES = {"chatml": CHATML, "inst": INST, "no end": NO_END}
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
U, A = "user", "assistant"

KNOWN = string.ascii_letters + string.digits + " \n.,'!?éöü東京は"
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return first + [{"role": (U, A)[n % 2], "content": text} for n, text in enumerate(turns)]


def learned_text(tokenizer, encoded) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORED])


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizers(kind) -> dict:
    return {name: toy_tokenizer(kind, source, **ROLES) for name, source in TEMPLATES.items()}


words = st.text(st.sampled_from(KNOWN), min_size=1, max_size=30).filter(str.strip)
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text == text.strip() != ""
)


@QUICK
@given(turns=st.lists(words.map(str.strip), min_size=1, max_size=3))
def test_labels_decode_back_to_the_answers_and_the_ends_of_their_turns(tokenizers, turns):
    messages = chat(*(text for answer in turns for text in (f"Q {answer}", answer)))
    expected = {
        "chatml": "".join(f"{answer}<|im_end|>" for answer in turns),
        "inst": "".join(f"{answer} </s>" for answer in turns),
        "no end": "".join(turns) + "\n</s>",
    }
    for name, tokenizer in tokenizers.items():
        encoded = encode_conversation(tokenizer, messages)
        spans = "".join(encoded.text[start:end] for start, end in encoded.learned)
        assert expected[name] == spans
        decoded = learned_text(tokenizer, encoded)
        # a token may hold the space or line break before an answer: it is learned with it
        assert "".join(expected[name].split()) == "".join(decoded.split())


@QUICK
@given(answer=anything, question=anything)
def test_every_unicode_answer_is_learned_to_the_byte(answer, question):
    tokenizer = toy_tokenizer_of("byte-level")
    encoded = encode_conversation(tokenizer, chat(question, answer))
    assert learned_text(tokenizer, encoded) == f"{answer}<|im_end|>"
    assert tokenizer.decode(encoded.input_ids) == encoded.text


@QUICK
@given(answer=words, question=words)
def test_ids_are_those_of_one_pass_over_the_rendered_text(tokenizers, answer, question):
    for tokenizer in tokenizers.values():
        encoded = encode_conversation(tokenizer, chat(question, answer))
        expected = tokenizer(encoded.text, add_special_tokens=False).input_ids
        assert expected == encoded.input_ids


def toy_tokenizer_of(kind, source=CHATML, cache={}):  # noqa: B006  (made once)
    if (kind, source) not in cache:
        cache[kind, source] = toy_tokenizer(kind, source, **ROLES)
    return cache[kind, source]


REAL = {"llama2": INST, "falcon": NO_END, "gpt2": NO_END, "gpt-neox": NO_END}


@pytest.fixture(scope="module")
def real(shared: Path) -> dict:
    found = {}
    for name, source in REAL.items():
        found[name] = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        found[name].chat_template = source
    return found


@QUICK
@given(answer=anything, question=anything)
def test_real_tokenizers_learn_answer_and_end_of_turn(real, answer, question):
    for name, tokenizer in real.items():
        encoded = encode_conversation(tokenizer, chat(question, answer))
        between = " " if name == "llama2" else "\n"
        normal = tokenizer.backend_tokenizer.normalizer
        expected = f"{answer}{between}{tokenizer.eos_token}"
        if normal is not None:
            expected = normal.normalize_str(expected)
        if tokenizer.decode(tokenizer(expected, add_special_tokens=False).input_ids) != expected:
            continue  # a vocabulary without some bytes drops them, in training as in use
        assert learned_text(tokenizer, encoded).lstrip() == expected.lstrip(), name


# --- the classes of failure that pass unseen elsewhere ---------------------------------------


def test_b1_the_end_token_is_learned_although_it_is_the_pad_token():
    tokenizer = toy_tokenizer("byte-level", INST, **ROLES)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello"))
    naive = DataCollatorForLanguageModeling(tokenizer, mlm=False)(
        [{"input_ids": encoded.input_ids}]
    )
    assert naive["labels"][0].tolist()[-1] == IGNORED
    assert encoded.labels[-1] == tokenizer.eos_token_id


def test_b5_the_beginning_stands_once(kind):
    tokenizer = toy_tokenizer(kind, INST, **ROLES)
    add_bos(tokenizer)
    messages = chat("Hi", "Hello")
    naive = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids
    assert naive.count(tokenizer.bos_token_id) == 2
    assert encode_conversation(tokenizer, messages).input_ids.count(tokenizer.bos_token_id) == 1


def test_b9_a_boundary_inside_a_token_moves_no_token():
    tokenizer = toy_tokenizer("metaspace", NO_END, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Paris is it"))
    prompt = tokenizer("user: Hi\nassistant: ", add_special_tokens=False).input_ids
    answer = tokenizer("Paris is it\n</s>", add_special_tokens=False).input_ids
    assert prompt + answer != encoded.input_ids
    assert encoded.input_ids == tokenizer(encoded.text, add_special_tokens=False).input_ids
    assert learned_text(tokenizer, encoded) == "Paris is it\n</s>"


def test_c4_a_stock_template_without_generation_marks_has_a_mask():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    messages = chat("Hi", "Hello", "And?", "Bye")
    naive = tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    assert not any(naive["assistant_masks"])
    encoded = encode_conversation(tokenizer, messages)
    assert learned_text(tokenizer, encoded) == "Hello<|im_end|>Bye<|im_end|>"


def test_c10_a_control_token_in_a_text_stays_text(kind):
    tokenizer = toy_tokenizer(kind, CHATML, **ROLES)
    messages = chat("a <|im_end|> b <think> c", "Hello")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    naive = tokenizer(
        tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
    ).input_ids
    assert naive.count(end) == 3
    encoded = encode_conversation(tokenizer, messages)
    assert encoded.input_ids.count(end) == 2
    assert tokenizer.convert_tokens_to_ids("<think>") not in encoded.input_ids
    assert tokenizer.decode(encoded.input_ids) == encoded.text


def test_c13_a_long_prompt_loses_its_start_and_the_answer_stays():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    messages = chat("word " * 100, "Hello")
    naive = encode_conversation(tokenizer, messages).labels[:40]
    assert set(naive) == {IGNORED}
    encoded = encode_conversation(tokenizer, messages, max_length=40)
    assert len(encoded.input_ids) == len(encoded.labels) == 40
    assert learned_text(tokenizer, encoded) == "Hello<|im_end|>"
    assert encoded.truncated > 0
    assert "truncated" in encoded.notes


# --- length ----------------------------------------------------------------------------------


def test_the_beginning_token_outlives_truncation():
    tokenizer = toy_tokenizer("byte-level", INST, **ROLES)
    encoded = encode_conversation(tokenizer, chat("word " * 100, "Hello"), max_length=40)
    assert encoded.input_ids[0] == tokenizer.bos_token_id


def test_a_short_system_text_and_the_header_outlive_truncation():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    messages = chat("word " * 300, "Hello", system="Be kind.")
    encoded = encode_conversation(tokenizer, messages, max_length=120)
    text = tokenizer.decode(encoded.input_ids)
    assert len(encoded.input_ids) == 120
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("word <|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n")


def test_an_answer_is_never_cut():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "word " * 100), max_length=40)
    assert not encoded.fits
    assert encoded.truncated == 0
    assert "answer-does-not-fit" in encoded.notes


def test_an_answer_keeps_a_token_before_it_from_which_its_first_is_predicted():
    tokenizer = toy_tokenizer("byte-level", "{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = chat("What is it?", "forty two")
    answer = encode_conversation(tokenizer, messages).learned_tokens
    assert not encode_conversation(tokenizer, messages, max_length=answer).fits
    encoded = encode_conversation(tokenizer, messages, max_length=answer + 1)
    assert encoded.fits
    assert encoded.labels == [-100, *encoded.input_ids[1:]]
    assert encoded.learned_tokens == answer


def test_an_earlier_answer_without_a_token_before_it_goes_whole():
    tokenizer = toy_tokenizer("byte-level", "{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = chat("Who?", "first", "And?", "last")
    whole = encode_conversation(tokenizer, messages)
    rest = sum(1 for _ in dropwhile(lambda label: label == -100, whole.labels))
    assert not encode_conversation(tokenizer, messages, max_length=rest + 1).answers_lost
    encoded = encode_conversation(tokenizer, messages, max_length=rest)
    assert encoded.answers_lost == 1
    assert encoded.labels[0] == -100
    assert learned_text(tokenizer, encoded) == "last"


def test_earlier_answers_go_whole_or_stay_whole():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    messages = chat("Hi", "first " * 10, "And?", "last")
    whole = encode_conversation(tokenizer, messages)
    for length in range(20, len(whole.input_ids)):
        encoded = encode_conversation(tokenizer, messages, max_length=length)
        text = learned_text(tokenizer, encoded)
        assert text in ("last<|im_end|>", "first " * 10 + "<|im_end|>last<|im_end|>")
        assert encoded.answers_lost == (not text.startswith("first"))
        assert len(encoded.input_ids) <= length


# --- system texts, ends and clocks -----------------------------------------------------------


def test_a_refused_system_text_goes_into_the_first_question():
    tokenizer = toy_tokenizer("byte-level", INST, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello", system="Be kind."))
    assert encoded.text == "<s>[INST] Be kind.\n\nHi [/INST] Hello </s>"
    assert encoded.notes == ("system-merged",)


def test_a_dropped_system_text_goes_into_the_first_question():
    source = CHATML.replace("{{'<|im_start|>'", "{% if m['role'] != 'system' %}{{'<|im_start|>'")
    tokenizer = toy_tokenizer(
        "byte-level", source.replace("\n'}}{% endfor", "\n'}}{% endif %}{% endfor"), **ROLES
    )
    messages = chat("Hi", "Hello", system="Be kind.")
    assert "kind" not in tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = encode_conversation(tokenizer, messages)
    assert "user\nBe kind.\n\nHi<|im_end|>" in encoded.text
    assert "system-merged" in encoded.notes


@pytest.mark.parametrize(
    "question", ["Hi", [{"type": "text", "text": "Hi"}],
                 [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]]
)  # fmt: skip
def test_texts_in_blocks_are_merged_like_any_other(question):
    tokenizer = toy_tokenizer("byte-level", INST, **ROLES)
    system = [{"type": "text", "text": "Be brief"}]
    messages = [{"role": "system", "content": system}, {"role": U, "content": question}]
    encoded = encode_conversation(tokenizer, [*messages, {"role": A, "content": "Hello"}])
    assert "[INST] Be brief\n\nHi [/INST]" in encoded.text
    assert "system-merged" in encoded.notes


def test_a_turn_that_the_template_leaves_open_is_ended_once():
    tokenizer = toy_tokenizer("byte-level", NO_END, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello"))
    assert encoded.text == "user: Hi\nassistant: Hello\n</s>"
    assert encoded.notes == ("end-of-turn-appended",)
    ended = toy_tokenizer("byte-level", NO_END + "{{ eos_token }}", **ROLES)
    assert encode_conversation(ended, chat("Hi", "Hello")).text == encoded.text


def test_an_unanswered_question_ends_nothing():
    tokenizer = toy_tokenizer("byte-level", NO_END, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello", "And?"))
    assert encoded.text.endswith("And?\n")
    assert learned_text(tokenizer, encoded) == "Hello"


def test_the_family_names_the_token_that_ends_a_turn():
    source = CHATML.replace("<|im_end|>\n'}}", "'}}{% if not loop.last %}<|im_end|>\n{% endif %}")
    tokenizer = toy_tokenizer("byte-level", source, **ROLES)
    policy = TokenizerPolicy(turn_end="<|im_end|>")
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello"), policy=policy)
    assert encoded.labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = toy_tokenizer("byte-level", NO_END, **ROLES)
    encoded = encode_conversation(other, chat("Hi", "Hello"), policy=policy)
    assert encoded.labels[-1] == tokenizer.eos_token_id  # which a base model knows


def test_no_clock_reaches_the_text(monkeypatch):
    import datetime

    from transformers.utils import chat_template_utils

    tokenizer = toy_tokenizer("byte-level", "{{ strftime_now('%d %b %Y') }}\n" + CHATML, **ROLES)
    texts, own = [], []
    for year in (2025, 2031):
        moment = type(
            "Moment", (datetime.datetime,), {"now": classmethod(lambda c, y=year: c(y, 1, 1))}
        )
        monkeypatch.setattr(chat_template_utils, "datetime", moment)
        encoded = encode_conversation(tokenizer, chat("Hi", "Hello"))
        assert "clock-frozen" in encoded.notes
        texts.append(encoded.text)
        own.append(tokenizer.apply_chat_template(chat("Hi", "Hello"), tokenize=False))
    assert own[0] != own[1]
    assert texts[0] == texts[1]


# --- raw text and bad input ------------------------------------------------------------------


def add_bos(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


@pytest.mark.parametrize(
    ("bos", "adds", "expected"),
    [("required", False, 1), ("required", True, 1), ("forbidden", True, 0),
     ("as tokenizer", True, 1), ("as tokenizer", False, 0)],
)  # fmt: skip
def test_raw_text_begins_as_its_family_wants(bos, adds, expected):
    tokenizer = toy_tokenizer("byte-level", **ROLES)
    if adds:
        add_bos(tokenizer)
    encoded = encode_text(tokenizer, "Once upon a time", policy=TokenizerPolicy(bos=bos))
    assert encoded.input_ids.count(tokenizer.bos_token_id) == expected
    assert encoded.labels[-1] == tokenizer.eos_token_id
    assert learned_text(tokenizer, encoded) == "Once upon a time</s>"


def test_control_tokens_in_raw_text_stay_text(kind):
    tokenizer = toy_tokenizer(kind, **ROLES)
    encoded = encode_text(tokenizer, "a </s> b", policy=TokenizerPolicy(bos="required"))
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(encoded.input_ids) == "<s>a </s> b</s>"


def test_a_prompt_format_replaces_the_template():
    tokenizer = toy_tokenizer("byte-level", CHATML, **ROLES)
    form = PromptFormat(name="plain", user="Q: {content}\n", assistant="A: {content}{eos}\n")
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello"), prompt_format=form)
    assert encoded.text == "<s>Q: Hi\nA: Hello</s>\n"
    assert learned_text(tokenizer, encoded) == "Hello</s>"


@pytest.mark.parametrize(
    ("messages", "words"),
    [([], "empty"), ([{"content": "x"}], "message 1"), (["x"], "message 1"),
     (chat("a", "b")[1:] * 2, "alternate")],
)  # fmt: skip
def test_what_cannot_be_a_conversation_is_refused_in_one_sentence(messages, words):
    source = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('alternate') }}{% endif %}"
    with pytest.raises(BadInput, match=words):
        encode_conversation(toy_tokenizer("byte-level", source + CHATML, **ROLES), messages)


def test_a_tokenizer_without_template_says_what_to_do():
    with pytest.raises(BadInput, match="no chat template"):
        encode_conversation(toy_tokenizer("byte-level", **ROLES), chat("a", "b"))


def test_a_function_is_a_tool():
    def multiply(a: int, b: int) -> int:
        """
        Multiply two numbers.

        Args:
            a: One number.
            b: The other.
        """
        return a * b

    tokenizer = toy_tokenizer("byte-level", "{{ tools | tojson }}" + CHATML, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello"), tools=[multiply])
    assert '"name": "multiply", "description": "Multiply two numbers."' in encoded.text
    assert learned_text(tokenizer, encoded) == "Hello<|im_end|>"


def test_a_templates_own_marks_help_where_nothing_else_does():
    marked = (  # each text is changed, and the first line depends on the whole conversation
        "{{ messages | length }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "assistant: {% generation %}{{ m['content'] | upper }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    bare = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer = toy_tokenizer("byte-level", bare, **ROLES)
    with pytest.raises(BadInput, match="message 2"):
        encode_conversation(tokenizer, chat("Hi", "Hello"))
    tokenizer = toy_tokenizer("byte-level", marked, **ROLES)
    encoded = encode_conversation(tokenizer, chat("Hi", "Hello", "And?", "Bye"))
    assert learned_text(tokenizer, encoded) == "HELLO<|im_end|>BYE<|im_end|>"
