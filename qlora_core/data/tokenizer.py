"""Load a tokenizer as its folder and its family want it, and say what was chosen."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qlora_core.data.codec import codec_of, source_of
from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture
from qlora_core.facts.tokenizer import TokenizerPolicy
from qlora_core.models.checkpoint import fetch
from qlora_core.models.remote_code import Trust, require_trusted
from qlora_core.models.skeleton import register_classes
from qlora_core.registry.detect import installed
from qlora_core.registry.files import ModelFolder
from qlora_core.registry.manager import Registry

log = logging.getLogger("qlora-core")
FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model",
    "tekken.json",
)  # fmt: skip
"""A folder without any of these has no tokenizer."""


def has_tokenizer(path: str | Path, *, revision: str | None = None, offline: bool = False) -> bool:
    """Whether the model's folder, or its Hub repository, holds a tokenizer."""
    folder = ModelFolder(path, revision=revision, offline=offline)
    return any(folder.path(name) is not None for name in FILES)


def load_tokenizer(
    path: str | Path,
    architecture: Architecture,
    *,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
    registry: Registry | None = None,
) -> Any:
    """The tokenizer of the model at ``path``, with the family's policy where it says nothing.

    Set are: a pad token, the padding side (for training), and the family's prompt format as
    chat template where the folder has none. What the folder states stays as it is.

    Raises BadInput for a folder without tokenizer, for one that needs code of its own, and for
    files that cannot be read.
    """
    folder = ModelFolder(path, revision=revision, offline=offline)
    if not any(folder.path(name) is not None for name in FILES):
        raise BadInput(
            f"{path} has no tokenizer (none of {', '.join(FILES)})",
            "copy the tokenizer's files into the folder, or give the folder that has them",
        )
    settings = folder.json("tokenizer_config.json") or {}
    own_code = "AutoTokenizer" in (settings.get("auto_map") or {})
    if own_code and not trust_remote_code:
        raise BadInput(
            f"the tokenizer of {path} is Python code of its own, which was not run",
            "prefer a checkpoint of this model that transformers reads natively (often named "
            "...-hf); or read the code and allow it with --trust-remote-code",
        )
    where = folder.folder or path
    if own_code:
        where = fetch(path, revision=revision, offline=offline, trust_remote_code=True)
        require_trusted(where, trust_remote_code)
    register_classes(architecture)  # transformers reads the config to choose a class
    tokenizer = read_tokenizer(
        where,
        revision=revision,
        offline=offline or folder.folder is not None,
        trust_remote_code=own_code,
    )
    apply_policy(tokenizer, architecture)
    (registry or installed()).prepare("qlora_prepare_tokenizer", tokenizer, architecture)
    return tokenizer


def apply_policy(tokenizer: Any, architecture: Architecture) -> None:
    """Give the tokenizer a pad token, a padding side and a chat template."""
    policy = architecture.tokenizer
    tokenizer.padding_side = policy.train_padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = choose_pad(tokenizer, policy)
    if not tokenizer.chat_template:
        tokenizer.chat_template = architecture.prompt.jinja()
    if architecture.prepare_tokenizer is not None:
        architecture.prepare_tokenizer(tokenizer)


def choose_pad(tokenizer: Any, policy: TokenizerPolicy) -> str:
    """An existing token to pad with: the family's reserved ones, then unk, then eos.

    Labels are masked by length, never by id, so that even eos does no harm here; but a
    trainer that masks by id would never teach it, which is why it comes last.
    """
    added = tokenizer.get_added_vocab()
    reserved = [token for token in (*policy.pad, *_named_pad(added)) if token in added]
    for token in (*reserved, tokenizer.unk_token, tokenizer.eos_token):
        if token:
            if token == tokenizer.eos_token:
                log.info("padding with the end token %r: masks go by length", token)
            return str(token)
    raise BadInput(
        "the tokenizer has no pad, unk or eos token to pad with",
        "add a pad_token that is in its vocabulary to tokenizer_config.json",
    )


def _named_pad(added: Mapping[str, int]) -> list[str]:
    """Added tokens that are named for padding, ``<|padding|>`` or ``[PAD]``, in order."""
    return sorted((t for t in added if re.search(r"(?i)(^|[^a-z])pad", t)), key=added.__getitem__)


def stop_token_ids(tokenizer: Any, policy: TokenizerPolicy) -> list[int]:
    """The ids that end generation: what ends a turn, the EOS token, the family's stop tokens."""
    codec = codec_of(tokenizer, policy)
    tokens = [codec.eos, policy.turn_end, *policy.stop]
    if tokenizer.chat_template:
        template = codec.template(source_of(tokenizer, None, None), {})
        tokens.insert(0, codec.ends(template).found)
    known = tokenizer.get_vocab()
    found = [known[token] for token in tokens if token in known]
    return list(dict.fromkeys(found))


def read_tokenizer(
    where: str | Path,
    *,
    revision: str | None = None,
    offline: bool = True,
    trust_remote_code: bool = False,
) -> Any:
    """The tokenizer of a folder or a Hub id as it is. Raises BadInput where none can be read."""
    try:
        return AutoTokenizer.from_pretrained(
            where,
            revision=revision or "main",
            local_files_only=offline,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # tokenizers raises plain Exception for files it cannot read
        what = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadInput(
            f"the tokenizer of {where} cannot be loaded: {what}",
            "check that its files are whole, or download them again",
        ) from None
