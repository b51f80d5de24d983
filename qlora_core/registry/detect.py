"""``detect``: from a model, its folder, its Hub id or its config to everything we know of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.facts.architecture import Architecture, ModelConfig
from qlora_core.registry.detection import Detection, Notice, choose, is_nested
from qlora_core.registry.files import ModelFolder, read_json
from qlora_core.registry.limits import check_config
from qlora_core.registry.manager import Registry
from qlora_core.registry.special_tokens import prompt_facts, tokenizer_facts
from qlora_core.registry.targets import ResolvedTargets, resolve_targets


@cache
def installed() -> Registry:
    """The registry of everything installed, made once per process."""
    return Registry.from_environment()


def detect(
    model: str | Path | ModelConfig | Any,
    *,
    architecture: str | None = None,
    targets: str = "all",
    registry: Registry | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Detection:
    """Find the family of a model and what to train in it.

    ``model`` is a folder, a ``config.json``, a Hub id, the mapping that a ``config.json``
    holds, or a loaded transformers model. Needs no torch for a described family, runs no
    remote code, loads no weights, and touches the network only for a Hub id.

    Raises BadInput for what is not a model, DetectionError where no single family fits.
    """
    name, config, folder = _read(model, revision=revision, offline=offline)
    registry = installed() if registry is None else registry
    chosen, verdict, verdicts = choose(config, registry, name=architecture)
    record = registry.provided_by(chosen.name) or _inferred_by(registry)
    model_type = str(config.get("model_type", ""))
    resolved = resolve_targets(chosen, targets, model_type=model_type)
    return Detection(
        model=name,
        model_type=model_type,
        config=config,
        architecture=chosen,
        provided_by=record.source if record else "the caller",
        version=record.version if record else "",
        fit=verdict.fit,
        reason=verdict.reason,
        verdicts=verdicts,
        targets=resolved,
        tokenizer=tokenizer_facts(chosen, folder),
        prompt_format=prompt_facts(chosen, folder),
        warnings=(*_notices(config, chosen), *_renamed(resolved, chosen, model_type)),
    )


def _renamed(
    targets: ResolvedTargets, architecture: Architecture, model_type: str
) -> Iterator[Notice]:
    """What plain PEFT cannot be told of this type."""
    taken = architecture.targets.taken_for_experts.get(model_type, ())
    remedy = "training here and qlora_core.attach take names as they are: use them in its place"
    if targets.renamed and architecture.targets.outside:
        yield Notice(
            "names-taken-for-experts",
            f"PEFT takes {', '.join(targets.renamed)} for experts of older checkpoints, and a form "
            "that it leaves alone would also mean layers of a tower: not among the target modules",
            remedy,
        )
    elif taken and isinstance(targets.target_modules, str):
        yield Notice(
            "names-taken-for-experts",
            f"of an expression PEFT keeps only the last names for {model_type}, which it then "
            f"adapts in every layer, and takes {', '.join(taken)} for experts",
            remedy,
        )


def _inferred_by(registry: Registry) -> Any:
    hook = registry.manager.hook.qlora_infer_architecture
    names = {implementation.plugin_name for implementation in hook.get_hookimpls()}
    return next((r for r in registry.records if r.name in names and r.status == "active"), None)


def _read(
    model: Any, *, revision: str | None, offline: bool
) -> tuple[str, ModelConfig, ModelFolder | None]:
    if isinstance(model, str | Path):
        path = Path(model)
        folder = ModelFolder(model, revision=revision, offline=offline)
        name, where = str(model), folder
        config = read_json(path) if os.path.isfile(path) else folder.config()
        check_config(config, name)
    elif isinstance(model, Mapping):
        name, config, where = str(model.get("_name_or_path") or "(a config)"), dict(model), None
        check_config(config, name)
    elif hasattr(getattr(model, "config", None), "to_dict"):
        config = model.config.to_dict()
        name, where = str(getattr(model.config, "_name_or_path", "") or type(model).__name__), None
    else:
        raise BadInput(
            f"detect cannot use a {type(model).__name__}",
            "give a path, a Hub id, the mapping of a config.json, or a loaded model",
        )
    if not isinstance(config.get("model_type"), str) and not config.get("architectures"):
        raise BadInput(
            f"{name} names no model_type: this is not a model's config",
            "give the folder of a model in the Hugging Face format",
        )
    return name, config, where


def _notices(config: ModelConfig, architecture: Architecture) -> list[Notice]:
    notices = []
    if is_nested(config, architecture) and not architecture.targets.outside:
        notices.append(
            Notice(
                "composite",
                f"{architecture.name} is only the text model of this {config.get('model_type')}; "
                "no tower is kept out of the targets",
                "install the engine, which reads the whole structure, or choose with --targets",
            )
        )
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = str(quantization.get("quant_method", "unknown"))
        notices.append(
            Notice(
                "already-quantized",
                f"the checkpoint is already quantized ({method})",
                "it is loaded as it is when bitsandbytes made it; "
                "for other methods take the 16-bit original",
            )
        )
    if config.get("auto_map"):
        notices.append(
            Notice(
                "remote-code",
                "the folder brings Python code of its own (auto_map), which was not run",
                "nothing to do where transformers knows the type itself; "
                "else read the code, then --trust-remote-code with its hash",
            )
        )
    heads = [str(name) for name in config.get("architectures") or ()]
    if heads and not any(
        "CausalLM" in h or "ConditionalGeneration" in h or "LMHead" in h for h in heads
    ):
        notices.append(
            Notice(
                "head",
                f"the checkpoint was saved as {', '.join(heads)}, not as a text generator",
                "its output head may be missing; take the base model",
            )
        )
    return notices
