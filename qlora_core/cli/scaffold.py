"""Write a plugin package: one module, one pyproject, one test that sits the contract."""

from __future__ import annotations

import keyword
from pathlib import Path
from pprint import pformat
from typing import Any

from qlora_core.errors import BadInput

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
    model_types=({model_type!r},),
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


def write_package(name: str, *, model: str | None = None, output: Path | None = None) -> Path:
    """Write a plugin package for the family ``name`` and return its folder.

    With ``model`` the layer names are read off that model's structure (needs the engine).
    Raises BadInput for a name that is no Python name and for a folder that is not empty.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise BadInput(
            f"{name!r} cannot be the name of a module", "use small letters, digits and underscores"
        )
    dashed = name.replace("_", "-")
    folder = output or Path(f"qlora-core-{dashed}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not empty", "give another --output")
    facts = _facts(name, model)
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
    return folder


def _facts(name: str, model: str | None) -> dict[str, Any]:
    if model is None:
        attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
        mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
        recurrent: tuple[str, ...] = ()
        config: dict[str, Any] = {"model_type": name, **_SMALL}
    else:
        from qlora_core.models.skeleton import build_skeleton
        from qlora_core.models.structure import analyse
        from qlora_core.registry.files import ModelFolder

        config = ModelFolder(model).config()
        targets = analyse(build_skeleton(config)).targets()
        attention, mlp, recurrent = targets.attention, targets.mlp, targets.recurrent
        config = {
            "model_type": config.get("model_type", name),
            **{key: value for key, value in _SMALL.items() if key in config},
        }
    more = f"\n        recurrent={recurrent!r}," if recurrent else ""
    example = pformat(config, sort_dicts=False).replace("\n", "\n    ")
    return {
        "model_type": config["model_type"],
        "attention": attention,
        "mlp": mlp,
        "recurrent": more,
        "example": example,
    }
