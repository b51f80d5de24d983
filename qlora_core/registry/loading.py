"""How one plugin is loaded: where it comes from, what it must have, and why it is left out."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from qlora_core.registry import hooks

OURS = "qlora-core"
MARK_THEM = "mark its functions with @hookimpl (from qlora_core import hookimpl)"
log = logging.getLogger(OURS)
SLOW_SECONDS = 2.0
"""Loading a plugin takes milliseconds; a slow one delays every command."""


class OtherApi(ValueError):
    """The plugin is made for another version of the hooks."""


class NoHooks(ValueError):
    """The plugin has no hook: it would be listed as active and do nothing."""


@dataclass
class PluginRecord:
    """One plugin's origin and fate."""

    name: str
    source: str
    """The distribution that brings it, or the file it was read from."""
    version: str
    status: str = "active"
    """``active``, ``blocked`` (switched off by the user) or ``broken``."""
    detail: str = ""
    """Why it is blocked or broken."""
    repair: str = ""
    """What to do about it."""
    provides: tuple[str, ...] = ()
    """The names of its families."""


@contextlib.contextmanager
def watched(record: PluginRecord) -> Iterator[None]:
    """While a plugin loads: its prints go to standard error, and a slow one is named."""
    start = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # --json has standard output to itself
            yield
    finally:
        if (seconds := time.monotonic() - start) > SLOW_SECONDS:
            log.warning("plugin %r (%s) took %.1f s to load", record.name, record.source, seconds)


def load_order(entry: EntryPoint) -> tuple[bool, str, str]:
    """Our own plugins first, so that no other distribution can take their names."""
    distribution = origin(entry.dist)[0] if entry.dist else ""
    return distribution != OURS, distribution, entry.name


@lru_cache(maxsize=64)
def origin(distribution: Distribution) -> tuple[str, str]:
    """Name and version; empty where the installed metadata is damaged.

    Reading them parses a file, and one distribution may bring a hundred plugins.
    """
    metadata = distribution.metadata
    return metadata["Name"] or "", metadata["Version"] or ""


def require_api(stated: Any) -> None:
    """Refuse a plugin that was written for hooks that this release does not have."""
    if stated not in range(hooks.OLDEST_API, hooks.API + 1):
        raise OtherApi(
            f"it is written for version {stated!r} of the plugin API, and this qlora-core has "
            f"{hooks.API} (and takes {hooks.OLDEST_API} and later)"
        )


def mark_broken(record: PluginRecord, error: BaseException) -> None:
    """Note why the plugin is left out, and what to do about it."""
    record.status = "broken"
    record.detail = f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError) and error.name:
        record.repair = f"pip install {error.name.partition('.')[0]}"
    elif isinstance(error, OtherApi):
        record.repair = f"pip install --upgrade {OURS} {record.source}"
    elif isinstance(error, NoHooks):
        record.repair = f"{MARK_THEM}, or --block {record.name}"
    else:
        record.repair = f"update or remove {record.source}, or --block {record.name}"


def import_file(path: Path) -> ModuleType:
    """Run the file as a module of its own name."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"qlora_core_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
