"""What the core needs to know about one model family: facts only, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_core.facts.prompt import PLAIN_PROMPT, PromptFormat
from qlora_core.facts.tokenizer import TokenizerPolicy

ModelConfig = Mapping[str, Any]
"""The plain mapping that a model's ``config.json`` holds."""

ROLES = ("attention", "mlp", "recurrent", "experts")
"""The groups of layers that users can choose between, in the order they are listed."""


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """Which layers of a family to adapt, by role, and which never.

    Every name is a dotted suffix of a module path, long enough to be unambiguous
    (``q_proj``, ``self_attention.dense``): the rule by which PEFT matches a list.
    """

    attention: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()
    """State-space and linear-attention projections."""
    experts: tuple[str, ...] = ()
    """Dotted suffixes of routed experts' 3-D parameters, such as ``experts.gate_up_proj``."""
    never: Mapping[str, str] = field(default_factory=dict)
    """Linear layers that must not be adapted (routers, indexers, raw-weight layers) -> why."""
    outside: tuple[str, ...] = ()
    """Names of submodules that are not the text model (vision or audio towers, projectors).

    Nothing below a path component of that name is adapted.
    """
    keep_unquantized: Mapping[str, str] = field(default_factory=dict)
    """Modules that must not become quantized modules -> why. The head never is."""
    dequantize_on_access: tuple[str, ...] = ()
    """Layers of ``keep_unquantized`` whose weight is 4-bit all the same, and parameters that
    belong to no linear layer: dequantized whenever code reads them."""

    taken_for_experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Model type -> last names of layers that PEFT, from 0.19 on, does not take as they are:
    routed experts bore them in older checkpoints of the type, and it adapts those instead."""

    def by_role(self) -> dict[str, tuple[str, ...]]:
        """The adaptable names of each role that has any."""
        roles = {role: getattr(self, role) for role in ROLES}
        return {role: names for role, names in roles.items() if names}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of the text model lie, as paths in the module tree.

    ``head`` lists the names it has had, newest first: a release may rename it,
    so the engine finds it by identity and only checks it against these.
    """

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embeddings: str = "model.embed_tokens"
    head: tuple[str, ...] = ("lm_head",)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model family as a value. Make variants with ``dataclasses.replace``."""

    name: str
    """What users type and files record."""
    model_types: tuple[str, ...] = ()
    """Exact values of ``config["model_type"]``."""
    class_names: tuple[str, ...] = ()
    """Shell patterns for ``config["architectures"]``: models whose type nobody claims."""
    where: Callable[[ModelConfig], bool] | None = None
    """Narrows the claim on ``model_types``; its docstring's first line is shown as the reason."""
    supersedes: tuple[str, ...] = ()
    """Families that give way to this one when both fit equally well."""
    targets: LoraTargets
    layout: Layout = Layout()
    prompt: PromptFormat = PLAIN_PROMPT
    """For base models: a tokenizer's own chat template always wins."""
    tokenizer: TokenizerPolicy = TokenizerPolicy()
    register_classes: Callable[[], None] | None = None
    """Makes classes that transformers does not ship known to it (``AutoConfig.register``).

    Called before a model is built or loaded, never by ``detect``; may be called twice.
    """
    prepare_tokenizer: Callable[[Any], None] | None = None
    """Only for what a fact cannot say. Called after the policy was applied."""
    prepare_model: Callable[[Any], None] | None = None
    """Only for what a fact cannot say. Called after loading, before adapters are attached."""
    example: ModelConfig = field(default_factory=dict)
    """The smallest config that builds the family: makes it testable offline, in seconds."""
    not_built: str = ""
    """Why the example could not be built, where the facts come from the source alone."""
    since: str = "5.0"
    """The oldest transformers release on which these facts were found to hold."""
    source: str = ""
    """Where the facts come from (a paper, a model card, a file of transformers)."""
