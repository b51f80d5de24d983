"""What is worked out once per tokenizer and kept as long as the tokenizer lives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from qlora_core.data.backend import Backend
from qlora_core.data.template import ChatTemplate
from qlora_core.data.turn_ends import TurnEnds, probe_turn_ends
from qlora_core.errors import BadInput
from qlora_core.facts.prompt import PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy


@dataclass
class Codec:
    """One tokenizer with a family's policy: its backend, templates and turn ends."""

    backend: Backend
    special_tokens: Mapping[str, Any]
    bos: str | None
    bos_id: int | None
    eos: str | None
    policy: TokenizerPolicy
    raw_bos: str
    """What raw text must begin with."""
    _templates: dict[tuple[str, str], ChatTemplate] = field(default_factory=dict)
    _ends: dict[int, TurnEnds] = field(default_factory=dict)

    def end(self, template: ChatTemplate) -> str:
        """The token to end a turn with where ``template`` writes none; empty without any.

        The family's, where the template writes it elsewhere: a base model may hold it untrained.
        """
        turn_end = self.policy.turn_end
        if turn_end and turn_end in self.backend.added and turn_end in template.source:
            return turn_end
        return self.eos or ""

    def template(self, source: str, arguments: Mapping[str, Any]) -> ChatTemplate:
        """The compiled template."""
        key = (source, json.dumps(arguments, sort_keys=True, default=repr))
        if key not in self._templates:
            self._templates[key] = ChatTemplate(source, self.special_tokens, arguments)
        return self._templates[key]

    def ends(self, template: ChatTemplate) -> TurnEnds:
        """What ends a turn with ``template``, probed once."""
        if id(template) not in self._ends:
            known = {self.eos, self.policy.turn_end, *self.policy.stop} - {None}
            self._ends[id(template)] = probe_turn_ends(
                template, self.backend, {token for token in known if token}
            )
        return self._ends[id(template)]


_codecs: WeakKeyDictionary[Any, tuple[Any, dict[TokenizerPolicy, Codec]]] = WeakKeyDictionary()


def codec_of(tokenizer: Any, policy: TokenizerPolicy) -> Codec:
    """The tokenizer's codec, made anew when tokens were added to the tokenizer or changed."""
    specials = tokenizer.special_tokens_map
    state = (len(tokenizer), json.dumps(specials, default=str))
    known = _codecs.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, {})
        _codecs[tokenizer] = known
    codecs = known[1]
    if policy not in codecs:
        backend = next((c.backend for c in codecs.values()), None) or Backend(tokenizer)
        codecs[policy] = Codec(
            backend=backend,
            special_tokens=specials,
            bos=tokenizer.bos_token or None,
            bos_id=tokenizer.bos_token_id,
            eos=tokenizer.eos_token or None,
            policy=policy,
            raw_bos=_raw_bos(tokenizer, policy),
        )
    return codecs[policy]


def source_of(
    tokenizer: Any, prompt_format: PromptFormat | None, tools: Sequence[Any] | None
) -> str:
    """The chat template's text. Raises BadInput for a tokenizer that has none."""
    if prompt_format is not None:
        return _jinja(prompt_format)
    if not tokenizer.chat_template:
        raise BadInput(
            "the tokenizer has no chat template",
            "give prompt_format=architecture.prompt, or load it with load_tokenizer",
        )
    return str(tokenizer.get_chat_template(None, tools))


@lru_cache
def _jinja(prompt_format: PromptFormat) -> str:
    return prompt_format.jinja()


def _raw_bos(tokenizer: Any, policy: TokenizerPolicy) -> str:
    """The BOS token's text if raw text begins with it: by the family, else by what it does."""
    bos = tokenizer.bos_token
    if not bos or policy.bos == "forbidden":
        return ""
    if policy.bos == "required":
        return str(bos)
    return str(bos) if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else ""
