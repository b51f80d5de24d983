"""Faulty plugin packages: each is named with its repair, and all others go on working."""

from __future__ import annotations

import importlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import qlora_base

from exams.soak.traps import watch
from exams.suite import Case, Suite
from qlora_core.cli.main import main
from qlora_core.registry import hooks
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import PluginRecord, Registry

SECONDS = 20.0
HEAD = "from qlora_core import Architecture, LoraTargets, PromptFormat, hookimpl\n"
PROVIDES = HEAD + "@hookimpl\ndef qlora_architectures():\n    "
CLAIM = "model_types=('llama',)"


def family(name: str, more: str = "") -> str:
    """Python that makes a family."""
    return f"Architecture(name={name!r}, targets=LoraTargets(attention=('q_proj',)), {more})"


class Fault(NamedTuple):
    """One faulty package: its module, what ``plugins`` must say of it, and of `detect`."""

    module: str
    status: str
    says: str
    entry: str = "{module}"
    detect: int = 0
    """The exit code of ``detect`` and of the other commands that need the family."""


FAULTS: dict[str, Fault] = {
    "raises at import": Fault("raise RuntimeError('no luck')", "broken", "no luck"),
    "exits at import": Fault("raise SystemExit(0)", "broken", "SystemExit"),
    "ends generators at import": Fault("raise GeneratorExit", "broken", "GeneratorExit"),
    "lacks a dependency": Fault(
        "import no_such_thing_at_all", "broken", "pip install no_such_thing_at_all"
    ),
    "is no Python": Fault("def (", "broken", "SyntaxError"),
    "recurses at import": Fault("def f(): f()\nf()", "broken", "RecursionError"),
    "has no such module": Fault("", "broken", "ModuleNotFoundError", entry="{module}_gone"),
    "has no such object": Fault("", "broken", "AttributeError", entry="{module}:gone"),
    "has an entry point that is none": Fault("", "broken", "", entry="not an entry!!"),
    "prints at import": Fault("print('{{ hello')\n" + PROVIDES + "return []", "active", ""),
    "has nothing in it": Fault("x = 1", "broken", "@hookimpl"),
    "raises in its hook": Fault(PROVIDES + "raise ValueError('oh no')", "broken", "oh no"),
    "exits in its hook": Fault(PROVIDES + "raise SystemExit(7)", "broken", "SystemExit"),
    "returns a number": Fault(PROVIDES + "return 42", "broken", "int"),
    "returns nothing": Fault(PROVIDES + "return None", "broken", "NoneType"),
    "returns texts": Fault(PROVIDES + "return ['llama']", "broken", "got str"),
    "misspells a hook": Fault(
        HEAD + "@hookimpl\ndef qlora_architecturs():\n    return []", "broken", "architecturs"
    ),
    "wants another argument": Fault(
        HEAD + "@hookimpl\ndef qlora_architectures(model):\n    return []", "broken", "model"
    ),
    "takes a family's name": Fault(
        PROVIDES + f"return [{family('llama')}]", "broken", "already comes from plugin"
    ),
    "gives one name twice": Fault(
        PROVIDES + f"return [{family('twin')}, {family('twin')}]", "broken", "twin"
    ),
    "claims a family's type": Fault(
        PROVIDES + f"return [{family('thief', CLAIM)}]", "active", "",
        detect=2,
    ),
    "has a condition that raises": Fault(
        PROVIDES + f"return [{family('doubt', CLAIM + ', where=lambda c: 1 / 0')}]",
        "active", "",
    ),
    "changes the config it is asked about": Fault(
        HEAD + "def hijack(c):\n    c['model_type'] = 'hijacked'\n    c.clear()\n    return False\n"
        "@hookimpl\ndef qlora_architectures():\n"
        f"    return [{family('hijack', CLAIM + ', where=hijack')}]",
        "active", "",
    ),
    "is made for a newer API": Fault(
        "QLORA_CORE_API = 2\n" + PROVIDES + "return []", "broken", "upgrade"
    ),
    "is made for an older API": Fault(
        "QLORA_CORE_API = 0\n" + PROVIDES + "return []", "broken", "upgrade"
    ),
    "states an API of text": Fault(
        "QLORA_CORE_API = 'new'\n" + PROVIDES + "return []", "broken", "upgrade"
    ),
    "observes and raises": Fault(
        HEAD + "@hookimpl\ndef qlora_run_started(run):\n    raise ValueError", "active", ""
    ),
}  # fmt: skip


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each package with each command, then the versions of the API."""
    del seed
    with tempfile.TemporaryDirectory() as name:
        commands = _commands(Path(name))
        few = count < len(FAULTS) * len(commands)
        for number, (what, fault) in enumerate(FAULTS.items()):
            place = Path(name) / str(number)
            module = f"faulty_plugin_{number}"
            _package(place, module, fault)
            with _installed(place):
                yield _listed(what, module, fault)
                for command, arguments in commands.items():
                    if not few or command == "detect":
                        yield _goes_on(f"{what}, {command}", arguments, fault)
        yield from _versions(Path(name))


def _commands(place: Path) -> dict[str, list[str]]:
    data = place / "rows.jsonl"
    turns = [{"role": role, "content": "hello"} for role in ("user", "assistant")]
    data.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    model = str(qlora_base.MODEL)
    return {
        "detect": ["detect", model, "--json"],
        "detect --build": ["detect", model, "--build", "--json"],
        "train --dry-run": ["train", "--dry-run", "--json", "--model", model, "--data", str(data),
                            "--output", str(place / "out")],
        "generate": ["generate", "--model", model, "--prompt", "hi", "--max-new-tokens", "1"],
    }  # fmt: skip


def _package(place: Path, module: str, fault: Fault) -> None:
    info = place / f"{module}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (place / f"{module}.py").write_text(fault.module + "\n", encoding="utf-8")
    metadata = f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2.3\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    entry = fault.entry.format(module=module)
    text = f"[{hooks.PROJECT}]\n{module} = {entry}\n"
    (info / "entry_points.txt").write_text(text, encoding="utf-8")


class _installed:  # noqa: N801  (reads as a statement)
    """While it lasts, the packages in a folder are installed."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __enter__(self) -> None:
        sys.path.insert(0, self.place)
        importlib.invalidate_caches()
        installed.cache_clear()

    def __exit__(self, *_: object) -> None:
        sys.path.remove(self.place)
        installed.cache_clear()


def _run(arguments: list[str]) -> tuple[Any, str, str]:
    out, errors = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(errors)
    logging.getLogger("qlora-core").addHandler(handler)
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            found = watch(lambda: main(arguments), patience=120)
    finally:
        logging.getLogger("qlora-core").removeHandler(handler)
    return found, out.getvalue(), errors.getvalue()


def _listed(what: str, module: str, fault: Fault) -> Case:
    """`plugins` names the package, its version, reason and repair; the others are active."""
    found, out, _ = _run(["plugins", "--json"])
    problem = found.fault(SECONDS)
    if problem:
        return Case(f"{what}, plugins", False, problem)
    try:
        records = json.loads(out)
    except ValueError:
        return Case(f"{what}, plugins", False, f"no JSON: {out[:100]!r}")
    own = next((record for record in records if record["name"] == module), None)
    if own is None:
        return Case(f"{what}, plugins", False, "not listed")
    said = f"{own['detail']} {own['repair']}"
    others = [r["name"] for r in records if r["status"] != "active" and r["name"] != module]
    wrong = [
        text
        for text, right in (
            (f"is {own['status']}", own["status"] == fault.status),
            (f"says {said!r}", fault.says in said),
            (f"of {own['source']} {own['version']}", own["version"] == "1.2.3"),
            ("no repair", bool(own["repair"]) == (fault.status == "broken")),
            (f"others are not active: {others}", not others),
            (f"exit code {found.result}", found.result == int(fault.status == "broken")),
        )
        if not right
    ]
    return Case(f"{what}, plugins", not wrong, "; ".join(wrong))


def _goes_on(name: str, arguments: list[str], fault: Fault) -> Case:
    found, out, errors = _run(arguments)
    problem = found.fault(SECONDS)
    if not problem and found.result != fault.detect:
        problem = f"exit code {found.result}: {errors[-300:]!r}"
    if not problem and fault.status == "broken" and "is left out" not in errors:
        problem = "left out without a word"
    if not problem and found.result == 0 and "--json" in arguments:
        try:
            json.loads(out)
        except ValueError:
            problem = f"standard output is no JSON: {out[:100]!r}"
    if not problem and fault.detect == 2 and "--architecture" not in errors:
        problem = f"no way out is named: {errors[-300:]!r}"
    return Case(name, not problem, problem)


def _versions(place: Path) -> Iterator[Case]:
    """Plugins that state an API: as file, as object, as module without and with families."""
    for stated in (hooks.OLDEST_API - 1, hooks.API, hooks.API + 1):
        fits = hooks.OLDEST_API <= stated <= hooks.API
        file = place / f"api_file_{stated}.py"
        text = f"QLORA_CORE_API = {stated}\n{PROVIDES}return [{family(f'mine{stated}')}]\n"
        file.write_text(text, encoding="utf-8")
        for way, load in _ways(file, stated).items():
            found = watch(load)
            right = (found.error is None) == fits
            yield Case(f"API {stated} as {way}", right, f"{found.error}")


def _ways(file: Path, stated: int) -> dict[str, Callable[[], object]]:
    watcher = staticmethod(hooks.hookimpl(lambda: None))
    bare = type("Bare", (), {"QLORA_CORE_API": stated, "qlora_run_started": watcher})()
    return {
        "file": lambda: Registry().load_file(file),
        "object": lambda: Registry().add(bare, PluginRecord("bare", "a test", "1")),
        "file by flag": lambda: Registry.from_environment(files=[file]),
        "command": lambda: _raise_unless_0(["plugins", "--plugin", str(file)]),
    }


def _raise_unless_0(arguments: list[str]) -> None:
    found, _, errors = _run(arguments)
    if found.result:
        raise RuntimeError(errors)


SUITE = Suite(
    "plugin-faults", "a faulty plugin is named with its repair; every other one goes on working",
    cases, full=147, quick=64,
)  # fmt: skip
