"""``qlora-core train``: fine-tune, or with ``--dry-run`` say what would be done."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.errors import BadInput

if TYPE_CHECKING:
    from qlora_core.training.train import DryRun

PREVIEWED = 2
"""Samples that the dry run shows as text, ids and labels."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a model in 4 bits",
        description="Every setting below is also a key of the settings file (TOML or YAML), dashes "
        "as underscores; a flag wins over the file. Minimum: --model, --data and --output.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="detect, read and show the data, and plan the memory; load no weights, write nothing",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the dry run's findings as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE",
        help="the dry run's data and samples as a page that opens offline",
    )  # fmt: skip
    parser.fill = _add_settings
    parser.set_defaults(run=run)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from qlora_core.training.settings import add_flags

    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, or show what would be trained."""
    from qlora_core.training.settings import settings_from

    settings = settings_from(arguments.config, vars(arguments))
    if arguments.dry_run:
        from qlora_core.training.train import dry_run

        found = dry_run(settings)
        if arguments.html:
            _write_page(found, arguments.html)
        _show(found, as_json=arguments.json)
        return 0
    if arguments.html:
        raise BadInput("--html belongs to --dry-run", "a run writes report.html by itself")
    if arguments.json:
        raise BadInput("--json belongs to --dry-run", "a run writes run.json by itself")
    from qlora_core.training.train import train

    finished = train(settings)
    if not finished.writes:  # another process of this run reports
        return 0
    print(f"adapter  {finished.adapter}")
    report = finished.directory / "report.html"
    if report.exists():
        print(f"report   {report}")
    return 0


def _write_page(found: DryRun, path: Path) -> None:
    from qlora_core.data.preview import html_preview

    data = found.inputs.data
    page = html_preview(data.train, found.inputs.tokenizer, report=data.report.summary())
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}", "name another file") from None


def _show(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from qlora_core.data.preview import terminal_preview

    inputs = found.inputs
    console = Console()
    colour = console.is_terminal
    detection = inputs.detection
    lines = [
        f"{detection.architecture.name}: {detection.reason}",
        *(f"warning [{n.code}] {n.message}\n  -> {n.remedy}" for n in detection.warnings),
        *_prompt_lines(found.prompt),
        *inputs.data.report.summary(),
        f"padding takes {found.padding:.1%} of all positions where samples are not packed",
        f"{found.steps:,} optimizer steps; gradient checkpointing "
        + ("on" if inputs.gradient_checkpointing else "off"),
    ]
    print("\n".join(lines), end="\n\n")
    console.print(
        terminal_preview(inputs.data.train, inputs.tokenizer, count=PREVIEWED, colour=colour)
    )
    print(f"\nmemory of one step\n{found.memory.table()}")


def _prompt_lines(prompt: dict[str, Any]) -> list[str]:
    """How conversations are written, and where serving would write them otherwise."""
    end = f"a turn ends with {prompt['turn_end']!r}"
    if prompt["appended"]:
        end = f"the template ends no turn, so {prompt['appended']!r} is appended"
    name = f"prompt format {prompt['format']}"
    if prompt["format"].startswith("custom:"):
        name = f"the model's own chat template, like no format known here ({prompt['format']})"
    lines = [f"{name}: system text as {prompt['system']}; {end}"]
    if prompt["prompt_differs"] and prompt["generation_prompt"]:
        lines += [
            f"warning [generation-prompt] when generating, the template writes "
            f"{prompt['generation_prompt']!r} before an answer, in training "
            f"{prompt['trained_prompt']!r}",
            "  -> put the difference into the rows' answers, or serve with another template",
        ]
    return lines
