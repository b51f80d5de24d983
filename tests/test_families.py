"""Our own families sit the exam that strangers' sit, and the documents list them."""

from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

from qlora_core import Architecture
from qlora_core.registry.detect import installed
from qlora_core.testing import ArchitectureContract

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
FAMILIES = list(installed().architectures.values())


class TestOurFamilies(ArchitectureContract):
    plugin = "*"


def row(family: Architecture) -> str:
    """The family's line in the table of docs/architectures.md."""
    names = {role: " ".join(f"`{n}`" for n in names) for role, names in
             family.targets.by_role().items()}  # fmt: skip
    types = ", ".join(f"`{kind}`" for kind in family.model_types)
    cells = [f"`{family.name}`", types, names.get("attention", ""), names.get("mlp", ""),
             names.get("recurrent", ""), names.get("experts", ""), family.prompt.name,
             family.tokenizer.bos]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_documents_state_what_the_family_states(family: Architecture) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert row(family) in page, f"put into docs/architectures.md:\n{row(family)}"
    assert f"- `{family.name}`: {family.source}" in page


def test_the_documents_list_no_family_that_does_not_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(family.name for family in FAMILIES)


def test_every_causal_type_of_transformers_is_described() -> None:
    known = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    named = {kind for family in FAMILIES for kind in family.model_types}
    assert known <= named
