"""Chat templates are named by what they render, each as people and other programs name it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_core import TokenizerPolicy, encode_conversation
from qlora_core.data.formats import identify_prompt_format
from qlora_core.data.tokenizer import stop_token_ids
from qlora_core.registry.detect import installed
from qlora_core.testing.tokenizers import toy_tokenizer
from tests.test_templates import CONVERSATIONS, tokenizer_for

# fmt: off
REAL = {
    "alpaca": ("Synatra-Mixtral-8x7B",),
    "alpaca-input": ("TinyLlama-1.1B-32k-Instruct-3.0bpw-h6-exl2",),
    "chatglm-3": ("chatglm3-6b",),
    "chatml": (
        "Yi-1.5-34B-Chat", "zephyr-7b-gemma-sft-v0.1", "zephyr-speakleash-010-pl-3072-32-16-0.01",
        "Nous-Hermes-2-Mixtral-8x7B-DPO", "QwQ-32B", "Qwen1.5-4B-Chat", "Qwen2-7B-Instruct",
        "Qwen3-1.7B", "snowflake-arctic-instruct", "SauerkrautLM-Qwen-32b", "IcaroLM",
        "internlm2-chat-7b", "Cat-Llama-3-70B-instruct",
    ),
    "codellama-70b": ("CodeLlama-70B-Instruct-AWQ", "CodeLlama-70b-Instruct-hf"),
    "command-r": ("aya-23-35B", "aya-23-8B"),
    "deepseek": ("deepseek-math-7b-rl",),
    "deepseek-coder": (
        "deepseek-coder-33B-instruct-GPTQ", "deepseek-coder-6.7b-instruct",
        "RTLCoder-Deepseek-v1.1",
    ),
    "deepseek-v3": ("DeepSeek-R1", "DeepSeek-R1-Distill-Llama-8B", "DeepSeek-V3-Base"),
    "dialogpt": ("DialoGPT-large",),
    "falcon-3": ("merlinite-7b-lab",),
    "gemma": ("gemma-2b-it", "gemma-7b-it"),
    "glm-4": ("glm-4-9b-chat",),
    "glm-edge": ("glm-edge-4b-chat",),
    "gpt-sw3": ("gpt-sw3-356m-instruct",),
    "granite": ("granite-3.1-3b-a800m-instruct", "granite-3.2-2b-instruct"),
    "h2o-danube": ("h2o-danube-1.8b-chat",),
    "human-assistant": ("medllama3-v20",),
    "llama-2": (
        "Llama-2-13b-chat-dutch", "CodeLlama-34b-Instruct-hf", "bagel-34b-v0.2",
        "Llama-2-70b-chat-hf", "Llama-2-7b-chat-hf", "KULLM3", "Swallow-7b-instruct-v0.1",
        "llama-2-13b-chat-hf-phr_mental_therapy",
    ),
    "llama-3": (
        "maqa_llama_4bit", "Aquila2-7B", "LLaMA3-SFT", "MAmmoTH2-8B-Plus",
        "Llama-3.2-3B-Instruct", "Meta-Llama-3-8B-Instruct", "Meta-Llama-3.1-8B-Instruct",
        "Llama3-8B-Chinese-Chat",
    ),
    "magicoder": ("Magicoder-S-DS-6.7B",),
    "minicpm": ("MiniCPM-2B-sft-fp32",),
    "mistral-v1": ("Mixtral-8x7B-Instruct-v0.1",),
    "mistral-v1-unspaced": (
        "Mistral-7B-Instruct-v0.1-GPTQ", "dictalm2.0-instruct",
        "Mistral-7B-v0.3-Chinese-Chat-uncensored",
    ),
    "mistral-v3-tekken": ("Mistral-Nemo-Instruct-2407",),
    "olmo": ("OLMo-7B-Instruct",),
    "openbuddy": ("openbuddy-llama3-8b-v21.1-8k",),
    "orion": ("llamion-14b-chat",),
    "phi-3": (
        "Phi-3-mini-4k-instruct-bnb-4bit-Ita", "Phi-3-medium-128k-instruct",
        "Phi-3-mini-128k-instruct", "Phi-3-mini-4k-instruct", "Phi-3-small-8k-instruct",
        "Phi-3-vision-128k-instruct", "Phi-3.5-mini-instruct",
    ),
    "phi-4": ("Phi-4-reasoning", "phi-4"),
    "phi-4-mini": ("Phi-4-mini-instruct",),
    "seallm-2": ("SeaLLM-7B-v2",),
    "solar": ("SOLAR-10.7B-Instruct-v1.0",),
    "taiwan-llm": ("Taiwan-LLM-7B-v2.0-base",),
    "tenyx": ("TenyxChat-7B-v1",),
    "untagged": ("winter-garden-7b-alpha",),
    "vicuna": ("WizardLM-2-8x22B", "em_german_leo_mistral"),
    "vicuna-orca": ("Pallas-0.5",),
    "vigogne": ("vigogne-2-7b-chat",),
}
# fmt: on
"""Written by hand, from what each of the 83 renders."""


@pytest.fixture(scope="module")
def named(shared: Path) -> dict[str, str]:
    path = shared / "prompts" / "expected" / "real_tokenizer_configs.json"
    configs = json.loads(path.read_text(encoding="utf-8"))["configs"]
    return {name: identify_prompt_format(tokenizer_of(config)) for name, config in configs.items()}


def tokenizer_of(config: dict[str, Any]) -> Any:
    roles = {role: config[role] for role in ("bos", "eos", "pad", "unk")}
    return tokenizer_for(config["chat_template"], **roles)


def test_83_of_83_real_templates_are_named_as_by_hand(named):
    by_hand = {model: name for name, models in REAL.items() for model in models}
    found = {name.split("/")[1]: form for name, form in named.items()}
    assert len(named) == 83
    assert found == by_hand


ENDS = {
    "chatml": "<|im_end|>", "codellama-70b": "<step>", "deepseek-coder": "<|EOT|>",
    "gemma": "<end_of_turn>", "gpt-sw3": "<s>", "llama-3": "<|eot_id|>", "openbuddy": "<|end|>",
    "phi-3": "<|end|>", "phi-4": "<|im_end|>", "phi-4-mini": "<|end|>",
}  # fmt: skip
"""What ends a turn, by hand; the tokenizer's EOS token in all other formats."""


def test_83_of_83_learn_the_token_that_ends_a_turn_and_stop_at_it_first(shared: Path):
    path = shared / "prompts" / "expected" / "real_tokenizer_configs.json"
    configs = json.loads(path.read_text(encoding="utf-8"))["configs"]
    form = {model: name for name, models in REAL.items() for model in models}
    for name, config in configs.items():
        tokenizer, end = tokenizer_of(config), ENDS.get(form[name.split("/")[1]], config["eos"])
        stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, TokenizerPolicy()))
        assert stops[0] == end, name
        encoded = encode_conversation(tokenizer, CONVERSATIONS["system, two turns"])
        start, stop = encoded.learned[-1]
        closing = encoded.text[start:stop].partition("Ans two")[2].strip()
        assert closing in (end, end + config["eos"]), name


MARKS = (
    ("<|im_start|>&<|im_sep|>", "phi-4"), ("<|im_start|>", "chatml seallm"),
    ("[INST]", "llama-2 mistral"), ("<|assistant|>&<|end|>", "phi-3 phi-4-mini"),
    ("[gMASK]<sop>", "glm"), ("<|{{ item['role'] }}|>&<|begin_of_image|>", "glm"),
    ("<start_of_turn>", "gemma"), ("'\\n\\nAssistant: ' + eos_token", "orion"),
    ("USER: &ASSISTANT: ", "vicuna taiwan-llm"), ("### Instruction:&<|EOT|>", "deepseek-coder"),
    ("<|START_OF_TURN_TOKEN|>&<|USER_TOKEN|>", "command-r"),
    ("<|start_header_id|>&<|end_header_id|>", "llama-3"), ("[gMASK]sop", "chatglm-3"),
    ("<用户>", "minicpm"), ("'Assistant: ' + message['content'] + eos_token", "deepseek"),
    ("<｜Assistant｜>&<｜User｜>&<｜end▁of▁sentence｜>", "deepseek-v3"),
    ("<|start_of_role|>", "granite"),
)  # fmt: skip
"""What llama.cpp looks for in a template's source (src/llama-chat.cpp), in its order.

Left out is its rule for any other ``<|user|>`` with ``<|assistant|>``, one name for four formats.
"""


def test_names_agree_with_what_llama_cpp_looks_for(named, shared: Path):
    path = shared / "prompts" / "expected" / "real_tokenizer_configs.json"
    configs = json.loads(path.read_text(encoding="utf-8"))["configs"]
    agreed = 0
    for model, name in named.items():
        source = str(configs[model]["chat_template"])
        known = next((n for m, n in MARKS if all(x in source for x in m.split("&"))), "")
        agreed += bool(known)
        assert not known or name.startswith(tuple(known.split())), (model, name, known)
    assert agreed >= 60


JINJA = {
    "ByteDance-Seed-OSS": "seed-oss", "Cohere2MoE": "cohere-text", "GLM-4.6": "glm-4",
    "GLM-4.7-Flash": "glm-4.7", "GigaChat3-10B-A1.8B": "gigachat-3", "Kimi-K2-Instruct": "kimi-k2",
    "Kimi-K2-Thinking": "kimi-k2", "LFM2-8B-A1B": "chatml", "Qwen3.5-4B": "chatml",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-v7-tekken", "Reka-Edge": "reka",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "chatml", "Apertus-8B-Instruct": "apertus",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-r7b",
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.1", "google-gemma-4-31B-it": "gemma-4",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-3", "openai-gpt-oss-120b": "gpt-oss",
    "ibm-granite-granite-3.3-2B-Instruct": "granite", "google-gemma-2-2b-it": "gemma",
    "llama-cpp-rwkv-world": "rwkv-world", "microsoft-Phi-3.5-mini-instruct": "phi-3",
}  # fmt: skip


@pytest.mark.parametrize(("file", "name"), JINJA.items(), ids=list(JINJA))
def test_newer_templates_are_named(shared: Path, file, name):
    source = (shared / "prompts" / "jinja" / "llama.cpp" / f"{file}.jinja").read_text("utf-8")
    ends = ("<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>")
    eos = next((end for end in ends if end in source), "</s>")
    assert identify_prompt_format(tokenizer_for(source, bos="<s>", eos=eos)) == name


FORMATS = installed().prompt_formats


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_installed_format_is_named_as_itself(name):
    tokenizer = toy_tokenizer(
        "byte-level", FORMATS[name].jinja(), bos_token="<s>", eos_token="</s>"
    )
    assert identify_prompt_format(tokenizer) == name


CHATML = FORMATS["chatml"]
ENDED = {
    role: getattr(CHATML, role).replace("<|im_end|>", "<|end|>") for role in ("user", "assistant")
}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (replace(CHATML, start="{bos}It is Monday.\n"), "chatml"),
        (replace(CHATML, user="<|im_start|>user\n{content} <|im_end|>\n\n"), "chatml"),
        (replace(CHATML, **ENDED), "chatml"),
        (replace(CHATML, user="<|im_start|>human\n{content}<|im_end|>\n"), "custom"),
        (replace(CHATML, user="{content}", assistant="{content}"), "custom"),
    ],
    ids=["another frame", "other spaces", "another end", "another header", "no header"],
)
def test_a_variant_keeps_the_name_while_its_headers_stay(variant, name):
    tokenizer = toy_tokenizer("byte-level", variant.jinja(), bos_token="<s>", eos_token="</s>")
    assert identify_prompt_format(tokenizer).partition(":")[0] == name


def test_a_template_that_writes_texts_twice_is_no_known_format():
    source = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    tokenizer = toy_tokenizer("byte-level", source, eos_token="</s>")
    assert identify_prompt_format(tokenizer).startswith("custom:")


UNNAMED = {
    "ai-sage/GigaChat-20B-A3B-instruct": "writes a BOS token that is not set",
    "Llama-3": "writes a BOS token that is not set",
    "yandex/YandexGPT-5-Lite-8B-instruct": "leaves the last answer out",
    "blenderbot": "writes nothing but white space between texts",
    "blenderbot_small": "writes nothing but white space between texts",
    "fireworks-ai/firefunction-v1": "wants a role of its own first",
    "CohereForAI/c4ai-command-r-v01": "for documents alone",
    "meta-llama/Llama-Guard-3-11B-Vision": "judges a conversation, and answers none",
}


def test_78_of_86_other_templates_are_named_and_the_rest_is_known(shared: Path):
    """Templates of llama.cpp's and huggingface.js's tests, looked at after the 83 were done."""
    folder = shared / "prompts" / "expected"
    names = {}
    data = json.loads((folder / "llama_cpp_test_chat_template.json").read_text("utf-8"))
    for name, case in data["cases"].items():
        roles = {"bos": case["bos_token"] or None, "eos": case["eos_token"] or None}
        names[name] = identify_prompt_format(tokenizer_for(case["template"], **roles))
    data = json.loads((folder / "huggingface_js_e2e.json").read_text("utf-8"))
    for name, case in data["cases"].items():
        roles = {role: case["data"].get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
        names[f"js {name}"] = identify_prompt_format(tokenizer_for(case["chat_template"], **roles))
    unnamed = {name for name, found in names.items() if found.startswith("custom:")}
    assert len(names) == 86
    assert {name.removeprefix("js ") for name in unnamed} == set(UNNAMED)
