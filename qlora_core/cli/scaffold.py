"""Write a plugin package: one module, one pyproject, one test that sits the contract."""

from __future__ import annotations

import keyword
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any

from qlora_core.errors import BadInput

if TYPE_CHECKING:
    from qlora_core.facts.architecture import ModelConfig
    from qlora_core.registry.manager import Registry

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "qlora-core-{dashed}"
version = "0.1.0"
description = "qlora-core learns the {name} family"
requires-python = ">=3.11"
dependencies = ["qlora-core>=0.1"]

[project.entry-points.qlora_core]
{name} = "{name}"

[tool.setuptools]
py-modules = ["{name}"]
"""
_MODULE = '''\
"""The {name} family."""

from qlora_core import Architecture, LoraTargets, PromptFormat, TokenizerPolicy, hookimpl

{name} = Architecture(
    name="{name}",
    model_types=({model_type!r},),{supersedes}
    targets=LoraTargets(
        attention={attention!r},
        mlp={mlp!r},{recurrent}
    ),
    # How a base model without a chat template is prompted; a template of its own always wins.
    prompt=PromptFormat(
        name="plain",
        system="{{content}}\\n\\n",
        user="### Instruction:\\n{{content}}\\n\\n",
        assistant="### Response:\\n{{content}}{{eos}}\\n\\n",
    ),
    # bos: "required" or "forbidden" where raw text must or must not start with the BOS token.
    tokenizer=TokenizerPolicy(),
    # The smallest config that builds the family; sizes in multiples of 64.
    example={example},
    source="where these facts come from: the paper, the model card or the modeling file",
)


@hookimpl
def qlora_architectures() -> list[Architecture]:
    """Provide the family."""
    return [{name}]
'''
_TEST = """\
from qlora_core.testing import ArchitectureContract


class TestContract(ArchitectureContract):
    plugin = "{name}"
"""
_README = """\
# qlora-core-{dashed}

Teaches [qlora-core] the {name} family: `pip install qlora-core-{dashed}`, and `qlora-core detect`
knows it.

[qlora-core]: https://pypi.org/project/qlora-core/
"""
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def write_package(
    name: str, *, registry: Registry, model: str | None = None, output: Path | None = None
) -> tuple[Path, list[str]]:
    """Write a plugin package for the family ``name``; its folder, and what its author must know.

    With ``model`` the layer names are read off that model's structure (needs the engine), and
    families of ``registry`` that claim its type as well are written into ``supersedes``.
    Raises BadInput for a name that is no Python name or is taken, and for a folder that is not
    empty.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise BadInput(
            f"{name!r} cannot be the name of a module", "use small letters, digits and underscores"
        )
    _require_free(name, registry)
    dashed = name.replace("_", "-")
    folder = output or Path(f"qlora-core-{dashed}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not empty", "give another --output")
    facts, notes = _facts(name, model, registry)
    files = {
        "pyproject.toml": _PYPROJECT.format(name=name, dashed=dashed),
        f"{name}.py": _MODULE.format(name=name, **facts),
        f"tests/test_{name}.py": _TEST.format(name=name),
        "README.md": _README.format(name=name, dashed=dashed),
    }
    for relative, text in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder, notes


def _require_free(name: str, registry: Registry) -> None:
    """Plugins and families each have a name of their own: a second one would be left out."""
    plugins = {record.name: record for record in registry.records}
    owner = plugins.get(name) or registry.provided_by(name)
    if owner is not None:
        raise BadInput(
            f"{name!r} is taken by the plugin {owner.name!r} of {owner.source}",
            f"choose another name, such as my_{name}",
        )


def _rivals(name: str, config: ModelConfig, registry: Registry) -> tuple[list[str], list[str]]:
    """The families to supersede, which claim this type as the new one will; and what to say."""
    from qlora_core.registry.detection import Fit, judge

    model_type = config.get("model_type")
    equal, notes = [], []
    for family in registry.architectures.values():
        verdict = judge(family, config)
        record = registry.provided_by(family.name)
        said = f"the installed family {family.name!r} ({record.source if record else 'unknown'})"
        if verdict.fit is Fit.MODEL_TYPE:
            equal.append(family.name)
            notes.append(
                f"{said} claims model_type {model_type!r} too: {name} states `supersedes`, so that "
                f"it takes all such models; to take only some of them, state `where` instead"
            )
        elif verdict.fit is Fit.REFINED:
            notes.append(
                f"{said} claims this model more specifically ({verdict.reason}) and will be "
                f"chosen: narrow {name} with `where`, and state supersedes=({family.name!r},)"
            )
    return equal, notes


def _facts(name: str, model: str | None, registry: Registry) -> tuple[dict[str, Any], list[str]]:
    if model is None:
        attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
        mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
        recurrent: tuple[str, ...] = ()
        config: dict[str, Any] = {"model_type": name, **_SMALL}
        equal, notes = _rivals(name, config, registry)
    else:
        from qlora_core.models.skeleton import build_skeleton
        from qlora_core.models.structure import analyse
        from qlora_core.registry.files import ModelFolder, read_json

        path = Path(model)
        config = read_json(path) if path.is_file() else ModelFolder(model).config()
        equal, notes = _rivals(name, config, registry)
        targets = analyse(build_skeleton(config)).targets()
        attention, mlp, recurrent = targets.attention, targets.mlp, targets.recurrent
        config = {
            "model_type": config.get("model_type", name),
            **{key: value for key, value in _SMALL.items() if key in config},
        }
    more = f"\n        recurrent={recurrent!r}," if recurrent else ""
    example = pformat(config, sort_dicts=False).replace("\n", "\n    ")
    gives_way = f"\n    supersedes={tuple(equal)!r},  # claims this type too" if equal else ""
    facts = {
        "model_type": config["model_type"],
        "supersedes": gives_way,
        "attention": attention,
        "mlp": mlp,
        "recurrent": more,
        "example": example,
    }
    return facts, notes
