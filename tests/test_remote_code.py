"""Code of a model's own is allowed by its hash, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_core.errors import BadInput
from qlora_core.models.remote_code import code_hash, require_trusted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "modeling.py").write_text("x = 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "layer.py").write_text("y = 2\n")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_code_is_allowed_by_its_own_hash(folder: Path) -> None:
    assert require_trusted(folder, code_hash(folder))
    assert require_trusted(folder, True)
    assert not require_trusted(folder, None)
    assert not require_trusted(folder, False)


@pytest.mark.parametrize("changed", ["modeling.py", "parts/layer.py", "new.py"])
def test_any_other_code_is_refused_with_its_files_and_its_hash(folder: Path, changed: str) -> None:
    allowed = code_hash(folder)
    with (folder / changed).open("a") as file:
        file.write("import os\n")
    with pytest.raises(BadInput, match=r"modeling\.py") as refused:
        require_trusted(folder, allowed)
    assert code_hash(folder) in refused.value.remedy


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    auto_map = {"AutoConfig": "owner/other--modeling.Config"}
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    with pytest.raises(BadInput, match="another repository"):
        require_trusted(folder, code_hash(folder))
