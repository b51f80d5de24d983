"""``TrainSettings`` from a settings file and from flags, and as documentation."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.training.schema import GROUPS, TrainSettings, kind

__all__ = ["TrainSettings", "add_flags", "documentation", "settings_from"]

_FIELDS = {entry.name: entry for entry in fields(TrainSettings)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per setting, in groups. A flag that is not given leaves no attribute."""
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, entry in _FIELDS.items():
        groups[entry.metadata["group"]].add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=_help(entry).replace("%", "%%"),
            **_argument(entry),
        )


def settings_from(config_file: Path | None, flags: Mapping[str, Any]) -> TrainSettings:
    """The settings of a TOML or YAML file, overruled by ``flags``.

    ``flags`` may hold other things too (a parsed command line): only settings are taken.
    A key of the file that is no setting, and a value of the wrong type, is BadInput with
    the file, the key and the nearest name. Where the file says ``epochs`` and a flag says
    ``max_steps`` (or the other way round) the flag wins.
    """
    read = {} if config_file is None else _read(config_file)
    values = {name: _as_flag(_FIELDS[name], value) for name, value in read.items()}
    given = {name: flags[name] for name in _FIELDS if flags.get(name) is not None}
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if one in given and other not in given:
            values.pop(other, None)
    values |= given
    missing = [n for n, e in _FIELDS.items() if _required(e) and n not in values]
    if missing:
        raise BadInput(
            f"no {', no '.join(missing)} given",
            " ".join(f"--{name} {name.upper()}" for name in missing)
            + ", or the same keys in the settings file",
        )
    values = {name: _frozen(value) for name, value in values.items()}
    try:
        return TrainSettings(**values)
    except BadInput as error:
        if config_file is None or error.problem.partition(" ")[0] in given:
            raise
        raise BadInput(f"{config_file}: {error.problem}", error.remedy) from None


def documentation() -> str:
    """Every setting with default and meaning, as Markdown tables."""
    lines = []
    for title in GROUPS:
        lines += [f"### {title.capitalize()}", "", "| key | flag | default | meaning |",
                  "|---|---|---|---|"]  # fmt: skip
        for name, entry in _FIELDS.items():
            if entry.metadata["group"] == title:
                flag = f"`--{name.replace('_', '-')}`"
                unset = "by rule" if "default:" in entry.metadata["help"] else "none"
                default = f"`{_default(entry)}`" if _default(entry) else unset
                default = "required" if _required(entry) else default
                text = entry.metadata["help"]
                if entry.metadata.get("choices"):
                    text += f" ({', '.join(entry.metadata['choices'])})"
                lines.append(f"| `{name}` | {flag} | {default} | {text} |")
        lines.append("")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """The mapping that a settings file holds, its keys checked."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"there is no settings file {path}", "check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read settings from {path}: {error}", "check --config") from None
    values = _parse(path, text)
    for key in values:
        if key not in _FIELDS:
            close = get_close_matches(str(key).replace("-", "_"), _FIELDS, n=1, cutoff=0.5)
            hint = (
                f"did you mean {close[0]!r}?" if close else "`qlora-core train --help` lists them"
            )
            raise BadInput(f"{path}: there is no setting called {key!r}", hint)
    return values


def _parse(path: Path, text: str) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{path} is not valid TOML: {error}", "correct that line") from None
    if suffix not in (".yaml", ".yml"):
        raise BadInput(f"{path}: a settings file is TOML or YAML", "name it .toml, .yaml or .yml")
    import yaml

    try:
        _no_key_twice(path, yaml.compose(text, Loader=yaml.SafeLoader))
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {error}", "correct that line") from None
    if not isinstance(values, dict | None):
        raise BadInput(f"{path} holds a {type(values).__name__}", "write lines of KEY: VALUE")
    return {k: _as_meant(k, v) for k, v in (values or {}).items() if v is not None}


def _no_key_twice(path: Path, root: Any) -> None:
    """Raise BadInput where a mapping of the YAML tree holds a key twice: the last would win."""
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):
            continue
        seen.add(id(node))  # an alias is the node that it stands for
        if node.id == "sequence":
            left += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            left += (key, value)
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise BadInput(
                    f"{path}: {name} stands twice, on line {lines[name]} and again on line {line}",
                    "keep the one that is meant",
                )
            lines[name] = line


def _as_meant(key: Any, value: Any) -> Any:
    """What YAML 1.1 reads otherwise: 1e-4 as text, as it has no dot, and on and off as booleans."""
    entry = _FIELDS.get(key)
    if entry is None:
        return value
    if isinstance(value, bool) and {"on", "off"} <= set(entry.metadata.get("choices") or ()):
        return "on" if value else "off"
    if kind(entry) == "float" and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _as_flag(entry: Field[Any], value: Any) -> Any:
    """A settings file may write a value as its flag does, and a list where commas would stand."""
    if kind(entry) == "mapping" and isinstance(value, str):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return _columns(value)
    several = isinstance(value, list) and all(isinstance(part, str) for part in value)
    if entry.name in ("data", "eval_data", "targets", "trusted_roles") and several:
        return ",".join(value)
    return value


def _argument(entry: Field[Any]) -> dict[str, Any]:
    """What argparse needs to know about one setting."""
    name = kind(entry)
    if name == "bool":
        return {"action": argparse.BooleanOptionalAction}
    metavar = entry.metadata.get("metavar")
    if name == "tuple":
        return {"action": "append", "metavar": metavar}
    if name == "mapping":
        return {"type": _columns, "metavar": metavar}
    if entry.metadata.get("choices"):
        return {"choices": entry.metadata["choices"]}
    types = {"int": ("N", int), "float": ("X", float), "str": (entry.name.upper(), str)}
    letter, convert = types[name]
    return {"type": convert, "metavar": metavar or letter}


def _columns(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(
        not (name.strip() and equals and role.strip()) for name, equals, role in pairs
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=ROLE,COLUMN=ROLE")
    return {name.strip(): role.strip() for name, _, role in pairs}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _default(entry: Field[Any]) -> str:
    value = entry.default
    if value is MISSING or value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _help(entry: Field[Any]) -> str:
    default = _default(entry)
    return str(entry.metadata["help"]) + (f" (default: {default})" if default else "")


if __name__ == "__main__":
    print(documentation())
