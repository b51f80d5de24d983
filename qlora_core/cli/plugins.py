"""``qlora-core plugins``: list them, check one, begin one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.cli.common import add_plugin_flags, registry_from
from qlora_core.errors import BadInput, MissingEngine

if TYPE_CHECKING:
    from qlora_core.registry.manager import PluginRecord


def add(commands: Any) -> None:
    """Register the command and its two actions."""
    parser = commands.add_parser(
        "plugins",
        help="list plugins, check one, or begin a new one",
        description="Without an action: lists active, blocked and broken plugins with the repair.",
    )
    add_plugin_flags(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable list")
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    check = actions.add_parser("check", help="run the architecture contract on a plugin's families")
    check.add_argument(
        "name", metavar="NAME", help="an installed plugin's name, or a plugin FILE.py"
    )
    check.set_defaults(run=run_check)
    new = actions.add_parser("new", help="write a plugin package to start from")
    new.add_argument("name", metavar="NAME", help="the family's name, such as my_family")
    new.add_argument("--model", help="pre-fill layer names from this folder, config.json or Hub id")
    new.add_argument("--output", type=Path, help="folder to write (default: qlora-core-NAME)")
    new.set_defaults(run=run_new)


def run_list(arguments: argparse.Namespace) -> int:
    """Exit code 1 when a plugin is broken: a listing that hides it would be of no use in CI."""
    from dataclasses import asdict

    records = registry_from(arguments).records
    if arguments.json:
        print(json.dumps([asdict(record) for record in records], indent=2))
    else:
        wide = max((len(record.name) for record in records), default=0)
        print("\n".join(line for record in records for line in _lines(record, wide)))
    return int(any(record.status == "broken" for record in records))


def run_check(arguments: argparse.Namespace) -> int:
    """Run the contract as pytest does, so that its output is what authors see in their tests."""
    import subprocess
    import tempfile

    try:
        import pytest  # noqa: F401
    except ModuleNotFoundError:
        raise BadInput(
            "plugins check runs pytest, which is not installed", "pip install pytest"
        ) from None
    name = _known_plugin(arguments)
    test = (
        "from qlora_core.testing import ArchitectureContract\n\n\n"
        f"class TestContract(ArchitectureContract):\n    plugin = {name!r}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_contract.py"
        path.write_text(test, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--no-header"]
        command += ["-W", "ignore::DeprecationWarning", "-c", os.devnull, "--rootdir", folder]
        command.append(path.name)
        return int(subprocess.run(command, cwd=folder, check=False).returncode != 0)  # noqa: S603


def run_new(arguments: argparse.Namespace) -> int:
    """Write the package and say what to do with it."""
    from qlora_core.cli.scaffold import write_package

    folder, notes = write_package(
        arguments.name,
        model=arguments.model,
        output=arguments.output,
        registry=registry_from(arguments),
    )
    print(f"wrote {folder}")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(folder)}")
    print("".join(f"note: {note}\n" for note in notes), end="")
    print(
        f"next: check the facts in {folder}/{arguments.name}.py, then\n"
        f"  pip install -e {folder}\n"
        f"  qlora-core plugins check {arguments.name}"
    )
    return 0


def _known_plugin(arguments: argparse.Namespace) -> str:
    path = Path(arguments.name)
    if path.suffix == ".py":
        arguments.plugin.append(str(path))
    registry = registry_from(arguments)
    records = {record.name: record for record in registry.records}
    name = path.resolve() if path.suffix == ".py" else arguments.name
    record = records.get(path.stem)
    if record is None:
        from difflib import get_close_matches

        close = get_close_matches(path.stem, records, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise BadInput(
            f"no plugin is called {arguments.name!r}",
            f"{meant}`qlora-core plugins` lists the installed ones; a file ends in .py",
        )
    if record.status == "broken" and "No module named 'torch'" in record.detail:
        raise MissingEngine("torch")
    if record.status != "active":
        raise BadInput(f"plugin {record.name!r} is {record.status}: {record.detail}", record.repair)
    return str(name)


def _lines(record: PluginRecord, wide: int) -> list[str]:
    origin = f"{record.source} {record.version}"
    lines = [
        f"{record.status:<8} {record.name:<{wide}} {origin}  {', '.join(record.provides)}".rstrip()
    ]
    if record.detail:
        lines += [f"         {record.detail}", f"         -> {record.repair}"]
    return lines
