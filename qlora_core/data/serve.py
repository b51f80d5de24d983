"""The tokens that servers make of a conversation, each by its own road to the same model.

Sources: transformers, ``apply_chat_template``; vLLM, ``entrypoints/chat_utils.py`` (a template
that loops over a message's content gets blocks, special tokens are not added); llama.cpp,
``common/chat.cpp`` (the server adds the BOS token where the tokenizer does, and takes off the
one that the template wrote); Ollama does the same with what its Go template renders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from qlora_core.data import bounded
from qlora_core.data.codec import source_of
from qlora_core.data.conform import Message, as_blocks
from qlora_core.data.template import clock


class Served(NamedTuple):
    """The text before an answer, as a server has it, and the tokens that the model gets."""

    text: str
    ids: list[int]


def as_transformers(tokenizer: Any, messages: Sequence[Message]) -> Served:
    """``tokenizer.apply_chat_template(messages, add_generation_prompt=True)``.

    Raises TemplateRefused where the template does not take these messages.
    """
    context = {
        **tokenizer.special_tokens_map,
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    source = source_of(tokenizer, None, None)
    text = bounded.render(source, context, clock=clock().isoformat())
    return Served(text, ids_of(tokenizer, text))


def as_vllm(tokenizer: Any, messages: Sequence[Message]) -> Served:
    """Chat completions of vLLM, with ``--chat-template-content-format auto``."""
    blocks = loops_over_content(source_of(tokenizer, None, None))
    return as_transformers(tokenizer, as_blocks(messages) if blocks else messages)


def as_llama_cpp(tokenizer: Any, messages: Sequence[Message]) -> Served:
    """llama.cpp's server with the template in the GGUF file."""
    return with_own_bos(tokenizer, as_transformers(tokenizer, messages).text)


def with_own_bos(tokenizer: Any, text: str) -> Served:
    """The tokens of a server that begins with a BOS token by itself, where the tokenizer does."""
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    text = bos + text.removeprefix(bos)
    return Served(text, ids_of(tokenizer, text))


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins plain text with its BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def loops_over_content(source: str) -> bool:
    """Whether a template goes through a message's content block by block, as vLLM finds out."""
    tree = _compile_jinja_template("").environment.parse(source)
    names = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node, ())
    }
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: Sequence[str] | set[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return (
        isinstance(node, nodes.Getitem)
        and isinstance(node.arg, nodes.Const)
        and node.arg.value == "content"
    )


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of rendered text, which has its special tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


ROADS: dict[str, Callable[[Any, Sequence[Message]], Served]] = {
    "transformers": as_transformers,
    "vLLM": as_vllm,
    "llama.cpp": as_llama_cpp,
}
REMEDIES = {
    "transformers": "send the messages through qlora_core.generate",
    "vLLM": "start it with --chat-template-content-format string",
    "llama.cpp": 'convert with "add_bos_token": false in tokenizer_config.json',
    "Ollama": 'convert with "add_bos_token": false in tokenizer_config.json',
}
