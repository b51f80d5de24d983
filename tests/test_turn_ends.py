"""What ends a turn and what stops generation, for base models and for chat models of a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_core import detect

CHAT = "{% for m in messages %}{{ m['content'] + 'END' }}{% endfor %}"


def folder(path: Path, model_type: str, eos: str, added: list[str], chat: str | None) -> Path:
    """A model whose vocabulary holds ``added`` and whose template ends turns by ``chat``."""
    settings: dict[str, Any] = {"eos_token": eos}
    settings["added_tokens_decoder"] = {str(i): {"content": t} for i, t in enumerate(added)}
    if chat is not None:
        settings["chat_template"] = CHAT.replace("END", chat)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("model_type", "eos", "added", "chat", "turn_end", "stop"),
    [
        # Gemma: the chat model ends turns by another token than its texts.
        ("gemma2", "<eos>", ["<eos>", "<end_of_turn>"], "<end_of_turn>", "<end_of_turn>",
         ["<end_of_turn>", "<eos>"]),
        ("gemma2", "<eos>", ["<eos>", "<end_of_turn>"], None, "<eos>", ["<eos>", "<end_of_turn>"]),
        # Llama 3: the base vocabulary holds the chat token too, untrained.
        ("llama", "<|end_of_text|>", ["<|end_of_text|>", "<|eot_id|>"], None, "<|end_of_text|>",
         ["<|end_of_text|>", "<|eot_id|>"]),
        ("llama", "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>", "<|eot_id|>",
         ["<|eot_id|>"]),
        # Llama 2 has no such token: it is not made up.
        ("llama", "</s>", ["<s>", "</s>", "<unk>"], None, "</s>", ["</s>"]),
        # Qwen's base model brings a chat template, and an EOS token that does not end turns.
        ("qwen2", "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>",
         ["<|im_end|>", "<|endoftext|>"]),
        # Phi 3 and 4 are one model type and end their turns differently.
        ("phi3", "<|endoftext|>", ["<|endoftext|>", "<|end|>"], "<|end|>", "<|end|>",
         ["<|end|>", "<|endoftext|>"]),
        ("phi3", "<|im_end|>", ["<|endoftext|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>",
         ["<|im_end|>", "<|endoftext|>"]),
    ],
)  # fmt: skip
def test_the_token_that_ends_a_turn_is_the_one_that_the_folder_uses(
    model_type: str, eos: str, added: list[str], chat: str | None, turn_end: str, stop: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = detect(folder(tmp_path, model_type, eos, added, chat)).tokenizer
    assert (found["turn_end"], found["stop"]) == (turn_end, stop)
