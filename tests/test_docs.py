"""The documents name everything there is, and nothing that is not."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import qlora_core
from qlora_core.cli.main import COMMANDS, parser
from qlora_core.registry import hooks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("name", [*hooks.PROVIDE, *hooks.PREPARE, *hooks.OBSERVE])
def test_every_hook_is_documented_with_its_arguments(name: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hooks, name)).parameters)
    assert f"### `{name}({arguments})`" in (DOCS / "hooks.md").read_text()


def test_no_hook_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"### `(qlora_\w+)\(", (DOCS / "hooks.md").read_text()))
    assert documented == {*hooks.PROVIDE, *hooks.PREPARE, *hooks.OBSERVE}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(qlora_core.Architecture)])
def test_every_fact_of_a_family_is_documented(field: str) -> None:
    assert f"`{field}`" in (DOCS / "plugins.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("command", [c.__name__.rpartition(".")[2] for c in COMMANDS])
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"qlora-core {command}" in (ROOT / "README.md").read_text()


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    helped = capsys.readouterr().out
    assert [c.__name__ for c in COMMANDS if c.__name__.rpartition(".")[2] not in helped] == []


def test_contributing_fits_on_a_page() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_the_tables_of_performance_are_those_of_the_results() -> None:
    from benchmarks.tables import PAGE, filled

    text = PAGE.read_text(encoding="utf-8")
    assert "<!-- speed -->" in text
    assert filled(text) == text, "write them anew: python -m benchmarks.tables"
