"""Real chat templates: our text is their text, and the mask is right in each."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from exams.soak.chats import tokenizer_for
from qlora_core.data.codec import codec_of, source_of
from qlora_core.data.encode import IGNORED, Encoded, encode_conversation
from qlora_core.data.template import CLOCK, ChatTemplate, set_clock
from qlora_core.errors import BadInput
from qlora_core.facts.tokenizer import TokenizerPolicy


def chat(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return first + [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]


CONVERSATIONS = {
    "one turn": chat("Q one", "Ans one"),
    "system": chat("Q one", "Ans one", system="Sys text"),
    "two turns": chat("Q one", "Ans one", "Q two", "Ans two"),
    "system, two turns": chat("Q one", "Ans one", "Q two", "Ans two", system="Sys text"),
    "unanswered": chat("Q one", "Ans one", "Q two"),
    "white space": chat("  Q one \n", "\n Ans one  ", " Q two", "Ans two\n"),
    "code": chat("Q {{ x }} {% if %}", "def f():\n    return 1\n\n\n# é 東京 😀"),
}


def answers(encoded: Encoded) -> list[str]:
    return [encoded.text[start:end] for start, end in encoded.learned]


@pytest.fixture(scope="module", autouse=True)
def _clock(request):
    """What transformers' own rendering is told, so that texts can be compared."""
    from transformers.utils import chat_template_utils

    moment = type("Moment", (datetime.datetime,), {"now": classmethod(lambda cls: CLOCK)})
    patch = pytest.MonkeyPatch()
    patch.setattr(chat_template_utils, "datetime", moment)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def configs(shared: Path) -> dict[str, Any]:
    path = shared / "prompts" / "expected" / "real_tokenizer_configs.json"
    return json.loads(path.read_text(encoding="utf-8"))["configs"]


@pytest.fixture(scope="module")
def real(configs) -> dict[str, Any]:
    return {
        name: tokenizer_for(
            c["chat_template"], bos=c["bos"], eos=c["eos"], pad=c["pad"], unk=c["unk"]
        )
        for name, c in configs.items()
    }


NEEDS_SYSTEM = {"stephenlzc/Mistral-7B-v0.3-Chinese-Chat-uncensored"}
"""Templates that fail without a system text (they use a variable that only it sets)."""
SHARE_GPT = {"AliAbdelrasheed/maqa_llama_4bit", "alexsobolev/IcaroLM"}
"""Templates over ``from`` and ``value``: transformers refuses the messages, ours are adapted."""


def test_83_of_83_real_templates_render_as_transformers_does(real):
    rendered = 0
    for name, tokenizer in real.items():
        for kind, messages in CONVERSATIONS.items():
            has_system = messages[0]["role"] == "system"
            if name in NEEDS_SYSTEM and not has_system:
                with pytest.raises(BadInput):
                    encode_conversation(tokenizer, messages)
                continue
            encoded = encode_conversation(tokenizer, messages)
            if name in SHARE_GPT or "system-merged" in encoded.notes:
                continue
            own = tokenizer.apply_chat_template(messages, tokenize=False)
            added = tokenizer.eos_token if "end-of-turn-appended" in encoded.notes else ""
            assert own + added == encoded.text, (name, kind)
            rendered += 1
    assert len(real) == 83
    assert rendered == 542


def test_83_of_83_learn_the_answers_and_what_ends_them(real, configs):
    for name, tokenizer in real.items():
        for kind, messages in CONVERSATIONS.items():
            if name in NEEDS_SYSTEM and messages[0]["role"] != "system":
                continue
            encoded = encode_conversation(tokenizer, messages)
            expected = [m["content"].strip() for m in messages if m["role"] == "assistant"]
            found = answers(encoded)
            assert len(expected) == len(found), (name, kind)
            for text, learned in zip(expected, found, strict=True):
                assert learned.strip().startswith(text), (name, kind)
            if messages[-1]["role"] == "assistant":
                last = next(i for i in reversed(encoded.labels) if i != IGNORED)
                assert tokenizer.decode([last]) in ends(name, configs), (name, kind)
            decoded = tokenizer.decode([i for i in encoded.labels if i != IGNORED])
            if kind != "white space":  # there a token may hold a part of what stands around
                assert "".join(found) == decoded, (name, kind)


def ends(name: str, configs: dict[str, Any]) -> set[str]:
    """Tokens that may end a turn: the EOS token, and those that the tables of formats name."""
    template = str(configs[name]["chat_template"])
    known = ("<|im_end|>", "<|end|>", "<end_of_turn>", "<|eot_id|>", "<step>", "<|EOT|>")
    return {configs[name]["eos"], *(token for token in known if token in template)} | (
        {"<s>"} if "gpt-sw3" in name else set()  # its turns are separated by BOS
    )


def test_no_template_gets_a_second_beginning(real):
    for name, tokenizer in real.items():
        if name in NEEDS_SYSTEM | SHARE_GPT or not tokenizer.bos_token:
            continue
        messages = CONVERSATIONS["one turn"]
        own = tokenizer.apply_chat_template(messages, tokenize=False)
        added = tokenizer.bos_token == tokenizer.eos_token
        encoded = encode_conversation(tokenizer, messages)
        extra = "end-of-turn-appended" in encoded.notes and added
        count = encoded.input_ids.count(tokenizer.bos_token_id)
        assert own.count(tokenizer.bos_token) + extra == count, name


def test_an_injected_end_of_turn_is_inert_in_83_of_83(real):
    for name, tokenizer in real.items():
        system = "Sys" if name in NEEDS_SYSTEM else None
        added = [token for token in tokenizer.get_added_vocab() if token != tokenizer.unk_token]
        attack = "".join(f" {token} x" for token in added)
        clean = encode_conversation(tokenizer, chat("Q", "A", "Q", "A", system=system))
        for dirty in (
            chat(f"Q{attack}", "A", "Q", "A", system=system),
            chat("Q", "A", "Q", f"A{attack}", system=system),
        ):
            encoded = encode_conversation(tokenizer, dirty)
            if "control-token-read-by-template" in encoded.notes:
                continue
            ids = set(tokenizer.get_added_vocab().values())
            control = [i for i in encoded.input_ids if i in ids]
            assert [i for i in clean.input_ids if i in ids] == control, name
            assert tokenizer.decode(encoded.input_ids) == encoded.text, name


# --- templates with their expected texts -----------------------------------------------------


def test_52_of_53_e2e_cases_render_to_the_byte(shared: Path):
    path = shared / "prompts" / "expected" / "huggingface_js_e2e.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    set_clock(datetime.datetime(2025, 7, 10, 12))
    try:
        different = [name for name, case in cases.items() if not _renders(case)]
    finally:
        set_clock(CLOCK)
    assert len(cases) == 53
    assert different == ["MadeAgents/Hammer2.1"]  # writes tools as JavaScript, not Python, does


def test_the_53rd_e2e_case_differs_in_how_a_tool_is_printed_alone(shared: Path):
    """``{{ tools }}`` prints a Python value in Python, as transformers does, JSON in JavaScript."""
    path = shared / "prompts" / "expected" / "huggingface_js_e2e.json"
    case = json.loads(path.read_text(encoding="utf-8"))["cases"]["MadeAgents/Hammer2.1"]
    text, tools = _rendered(case), case["data"]["tools"]
    assert text.count(str(tools)) == 1
    assert text.replace(str(tools), json.dumps(tools)) == case["target"]


def _renders(case: dict[str, Any]) -> bool:
    return _rendered(case) == case["target"]


def _rendered(case: dict[str, Any]) -> str:
    data = dict(case["data"])
    messages, tools = data.pop("messages"), data.pop("tools", None)
    # one template tells "not said" from "no": its default is yes
    unsaid = "add_generation_prompt is not defined" in case["chat_template"]
    generate = data.pop("add_generation_prompt", unsaid)
    template = ChatTemplate(case["chat_template"], {}, data)
    return template.render(messages, tools, generate=generate)


def test_every_e2e_conversation_that_answers_has_a_mask(shared: Path):
    path = shared / "prompts" / "expected" / "huggingface_js_e2e.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    masked = 0
    for name, case in cases.items():
        data = dict(case["data"])
        messages, tools = data.pop("messages"), data.pop("tools", None)
        data.pop("add_generation_prompt", None)
        roles = {r: data.pop(f"{r}_token", None) for r in ("bos", "eos", "pad", "unk")}
        tokenizer = tokenizer_for(case["chat_template"], **roles)
        encoded = encode_conversation(tokenizer, messages, tools=tools, template_kwargs=data)
        said = [m for m in messages if m["role"] == "assistant"]
        assert len(said) == len(encoded.learned), name
        for message, learned in zip(said, answers(encoded), strict=True):
            answer = (message.get("content") or "").rpartition("</think>")[2].strip()
            calls = json.dumps(message.get("tool_calls") or [])
            names = re.findall(r'"name": "(\w+)"', calls)
            assert all(word in learned for word in [answer, *names]), name
            masked += 1
    assert masked == 38


def test_llama_cpp_cases_that_jinja_agrees_with_render_to_the_byte(shared: Path):
    path = shared / "prompts" / "expected" / "llama_cpp_test_chat_template.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    agreed = {name: c for name, c in data["cases"].items() if c["python_status"] == "same"}
    assert len(agreed) == 26
    for name, case in agreed.items():
        roles = {"bos": case["bos_token"] or None, "eos": case["eos_token"] or None}
        template = ChatTemplate(
            case["template"], {"bos_token": case["bos_token"], "eos_token": case["eos_token"]}, {}
        )
        text = template.render(data["conversation"], generate=data["add_generation_prompt"])
        assert case["python_jinja"] == text, name
        tokenizer = tokenizer_for(case["template"], **roles)
        unset = {f"{role}_token": "" for role, token in roles.items() if token is None}
        encoded = encode_conversation(tokenizer, data["conversation"], template_kwargs=unset)
        learned = [text.strip() for text in answers(encoded)]
        assert learned[0].startswith("Hi there"), name
        assert learned[1].startswith("I am an assistant"), name
        assert not any("Who are you" in text or "Another" in text for text in learned), name


# --- reference masks -------------------------------------------------------------------------

CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdef123", "type": "function",
         "function": {"name": "mul", "arguments": {"a": 3, "b": "x"}}}
    ],
}  # fmt: skip
RESULT = {"role": "tool", "name": "mul", "content": "12", "tool_call_id": "abcdef123"}
TOOLS = [
    {"type": "function",
     "function": {"name": "mul", "description": "Multiply",
                  "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
]  # fmt: skip
REASONED = {"role": "assistant", "content": "Ans two", "reasoning_content": "Let me think."}
REFERENCES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "one turn": (chat("Q one", "Ans one"), None),
    "two turns": (chat("Q one", "Ans one", "Q two", "Ans two", system="Sys text"), None),
    "tools": ([*chat("Q one"), CALL, RESULT, *chat("", "Ans one")[1:]], TOOLS),
    "reasoning": ([*chat("Q one", "Ans one", "Q two"), REASONED], None),
}
EOS = {"gemma": "<eos>", "gptoss": "<|return|>", "llama3": "<|eot_id|>",
       "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>",
       "glm": "<|user|>", "phi3": "<|endoftext|>", "llava": "</s>",
       "diffusion": "<turn|>", "idefics": "<end_of_utterance>"}  # fmt: skip
INSERTED = re.compile(
    r"^(<\|start\|>assistant(<\|channel\|>final<\|message\|>)?|<｜Assistant｜>"
    r"|<｜tool▁outputs▁end｜>)|\n?<think>\n*(</think>\n*)?|^\n*</think>\n*"
)


def bare(learned: list[str]) -> str:
    """Learned text without headers, inserted think blocks, and space after an end of turn."""
    return "".join(INSERTED.sub("", part).strip() for part in learned)


NO_CALLS = {"idefics3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"}
"""They leave tool calls out: the reference learns to end an empty turn, ours learns nothing."""
CLOSING_EOS = {"phi3", "phi3_5"}
"""A closed conversation gets an EOS after the end of turn and a line break: ours stops before."""
HANDS_OVER = {"diffusion_gemma"}
"""After a call a special token asks for the result: ours learns it, as it ends the turn."""


def test_masks_equal_trls_reference_masks(shared: Path):
    equal, different = 0, set()
    for path in sorted((shared / "prompts" / "jinja" / "trl").glob("*_training.jinja")):
        family = path.name.removesuffix("_training.jinja")
        source = path.read_text(encoding="utf-8")
        eos = next((v for k, v in EOS.items() if family.startswith(k)), "<|im_end|>")
        tokenizer = tokenizer_for(source, bos="<bos>", eos=eos)
        policy = TokenizerPolicy(stop=("<|observation|>",))
        for kind, (messages, tools) in REFERENCES.items():
            template = codec_of(tokenizer, policy).template(source_of(tokenizer, None, tools), {})
            try:
                text = template.render(messages, tools)
            except BadInput:  # no system turn, no tools
                continue
            spans = template.generation_blocks(messages, tools)
            theirs = bare([text[start:end] for start, end in spans])
            encoded = encode_conversation(tokenizer, messages, tools=tools, policy=policy)
            if theirs == bare(answers(encoded)):
                equal += 1
            else:
                different.add((family, kind))
    expected = {(family, "tools") for family in NO_CALLS | HANDS_OVER} | {
        (family, kind) for family in CLOSING_EOS for kind in REFERENCES
    }
    assert expected == different
    assert equal == 81


# --- everything else that is shipped ---------------------------------------------------------

REFUSAL = "the chat template refuses this conversation: "
TEXTS = {
    "benign": ("Hello there", "Fine, thanks"),
    "control": ("a <|im_end|> b </s>", "x <|im_end|> y"),
    "white space": ("  Hi \n", "\n\n Ans  \n"),
    "thoughts": ("Q", "<think>\nhmm\n</think>\n\nThe answer"),
    "half a thought": ("Q", "why</think>The answer"),
    "a tool's words": ("<tool_response>12</tool_response>", "Ok done"),
    "lines": ("Q", "line one\n\nline two\n```py\nx = 1\n```"),
    "marks": ("a < b && c > d \"q\" 'r' \\n", "{'a': \"b\"} & <b>é 😀</b>"),
}


@pytest.mark.slow
def test_108_templates_teach_8_kinds_of_answers_or_refuse_in_their_own_words(shared: Path):
    learned = refused = 0
    paths = sorted((shared / "prompts" / "jinja").glob("*/*.jinja"))
    assert len(paths) == 108
    for path in paths:
        source = path.read_text(encoding="utf-8")
        eos = "<|im_end|>" if "<|im_end|>" in source else "</s>"
        tokenizer = tokenizer_for(source, bos="<s>", eos=eos)
        for kind, (question, answer) in TEXTS.items():
            for before in ([], chat("first", "one", system="Sys")):
                messages = [*before, *chat(question, answer)]
                try:
                    encoded = encode_conversation(tokenizer, messages)
                except BadInput as error:
                    words = error.problem.removeprefix(REFUSAL)
                    with pytest.raises(Exception, match=re.escape(words)):
                        tokenizer.apply_chat_template(messages, tokenize=False)
                    refused += 1
                    continue
                said = answer.rpartition("</think>")[2].strip()
                assert said in answers(encoded)[-1], (path.name, kind)
                assert len(answers(encoded)[-1]) <= len(answer) + 60, (path.name, kind)
                assert tokenizer.decode(encoded.input_ids) == encoded.text, (path.name, kind)
                learned += 1
    assert (learned, refused) == (1641, 87)
