"""A module imports only from its own layer or from one to its left."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANK = {
    "errors": 0, "facts": 1, "registry": 2, "kernels": 3, "models": 4, "data": 4, "training": 5,
    "cli": 6, "testing": 6,
}  # fmt: skip
MODULES = sorted((ROOT / "qlora_core").rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    layer = path.relative_to(ROOT / "qlora_core").parts[0].removesuffix(".py")
    if layer == "__init__":
        return  # the public names, loaded lazily
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if name.startswith("qlora_core.") and RANK.get(name.split(".")[1], 0) > RANK[layer]
    ]
    assert not wrong


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").glob("*.py")), ids=lambda p: p.name)
def test_plugins_import_only_public_names(path: Path) -> None:
    inner = [name for _, name in imports(path) if name.startswith("qlora_core.")]
    import qlora_core

    assert not [
        name for name in inner if name.removeprefix("qlora_core.") not in qlora_core.__all__
    ]


def test_nobody_imports_the_plugins() -> None:
    assert not [p for p in MODULES if any(n.startswith("qlora_plugins") for _, n in imports(p))]


OTHER_MEANINGS = frozenset({"git", "gpt"})
"""What is a common word, too: Git LFS is a program, gpt a role in ShareGPT's rows."""


def _words(text: str) -> list[str]:
    """The words of a string, without the server llama.cpp, which serves all families."""
    return re.findall(r"[a-z0-9_]+", text.lower().replace("llama.cpp", ""))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_string_of_the_core_names_a_family(path: Path) -> None:
    """The core knows no family; docstrings may tell of one."""
    from qlora_core.registry.detect import installed

    families = {t for a in installed().architectures.values() for t in (a.name, *a.model_types)}
    families |= {re.sub(r"[\d_]+$", "", name) for name in families}  # llama of llama4
    families -= OTHER_MEANINGS
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    named = [
        f"line {node.lineno}: {node.value!r} names {named_in}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and id(node) not in docstrings
        and (named_in := families.intersection(_words(node.value)))
    ]  # fmt: skip
    assert not named
