"""What a model folder says of its tokenizer, read without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_core.facts.architecture import Architecture
from qlora_core.registry.files import ModelFolder, chat_template

EXAMPLE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
)


def tokenizer_facts(architecture: Architecture, folder: ModelFolder | None) -> dict[str, Any]:
    """The ``tokenizer`` part of a detection: the folder's own settings first, then the family's.

    Flags of tokenizers are known to lie; training probes what the tokenizer really does.
    """
    policy = architecture.tokenizer
    settings = (folder.json("tokenizer_config.json") if folder else None) or {}
    eos = _token(settings.get("eos_token"))
    added = _added_tokens(settings)
    pad = _token(settings.get("pad_token")) or next((t for t in policy.pad if t in added), None)
    template = chat_template(folder, settings) if folder else None
    # A base model's vocabulary may hold the family's token too, untrained: the template decides.
    turn_end = policy.turn_end if (policy.turn_end or "\0") in (template or "") else eos
    known = [t for t in (policy.turn_end, *policy.stop) if not settings or t in added]
    stop = [token for token in (turn_end, eos, *known) if token]
    return {
        "pad": pad,
        "bos": _token(settings.get("bos_token")),
        "turn_end": turn_end,
        "stop": list(dict.fromkeys(stop)),
        "train_padding_side": policy.train_padding_side,
        "generate_padding_side": policy.generate_padding_side,
        "source": "tokenizer_config.json" if settings else "architecture",
    }


def prompt_facts(architecture: Architecture, folder: ModelFolder | None) -> dict[str, Any]:
    """The ``prompt_format`` part of a detection. A folder's template is never run here."""
    settings = (folder.json("tokenizer_config.json") if folder else None) or {}
    if folder is not None and chat_template(folder, settings) is not None:
        return {"name": "chat template", "source": "tokenizer", "system": None, "example": None}
    prompt = architecture.prompt
    bos, eos = (_token(settings.get(f"{kind}_token")) for kind in ("bos", "eos"))
    segments = prompt.render(EXAMPLE, bos=bos or "", eos=eos or "")
    return {
        "name": prompt.name,
        "source": "architecture",
        "system": "own turn" if prompt.system is not None else "merged into the first user turn",
        "example": "".join(segment.text for segment in segments),
    }


def _token(value: Any) -> str | None:
    """A special token's text: settings hold it as a string or as a mapping with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _added_tokens(settings: Mapping[str, Any]) -> set[str]:
    decoder = settings.get("added_tokens_decoder")
    values = decoder.values() if isinstance(decoder, Mapping) else ()
    return {token for token in map(_token, values) if token}
