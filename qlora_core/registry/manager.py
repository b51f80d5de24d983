"""Find plugins, load each on its own, and remember where it came from and what became of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from qlora_core.errors import BadInput, PluginError, QloraError
from qlora_core.facts.architecture import Architecture, ModelConfig
from qlora_core.facts.prompt import PromptFormat
from qlora_core.registry import hooks
from qlora_core.registry.loading import (
    MARK_THEM,
    OURS,
    NoHooks,
    PluginRecord,
    import_file,
    load_order,
    mark_broken,
    origin,
    require_api,
    watched,
)

__all__ = ["PluginRecord", "Registry"]
log = logging.getLogger(OURS)


class Registry:
    """The plugins of one process. Nothing here depends on the order in which they load."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hooks.PROJECT)
        self.manager.add_hookspecs(hooks)
        self.records: list[PluginRecord] = []
        self.architectures: dict[str, Architecture] = {}
        self.prompt_formats: dict[str, PromptFormat] = {}
        self._owner: dict[str, PluginRecord] = {}

    @classmethod
    def from_environment(
        cls, *, files: Iterable[str | Path] = (), block: Iterable[str] = ()
    ) -> Registry:
        """All installed plugins but the blocked ones, then plugins read from files.

        Raises PluginError for a file that cannot be used: it was asked for by name.
        """
        registry = cls()
        blocked = frozenset(block)
        entries = sorted(entry_points(group=hooks.PROJECT), key=load_order)
        unknown = blocked - {entry.name for entry in entries}
        if unknown:
            raise BadInput(
                f"no plugin is called {', '.join(sorted(unknown))}",
                "`qlora-core plugins` lists the installed ones",
            )
        for entry in entries:
            registry._load_entry(entry, blocked)
        for path in files:
            registry.load_file(Path(path))
        return registry

    def load_file(self, path: Path) -> PluginRecord:
        """Register the plugin module at ``path``. Raises PluginError with the reason."""
        record = PluginRecord(path.stem, str(path), "file")
        try:
            with watched(record):
                self.add(import_file(path), record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an import may raise anything, SystemExit too
            raise PluginError(
                f"plugin file {path}: {type(error).__name__}: {error}",
                MARK_THEM if isinstance(error, NoHooks) else "mend the file, or leave out --plugin",
            ) from error
        return record

    def add(self, plugin: object, record: PluginRecord) -> None:
        """Register ``plugin`` whole, or not at all."""
        require_api(getattr(plugin, "QLORA_CORE_API", hooks.API))
        if self.manager.has_plugin(record.name):
            what = "file" if record.version == "file" else "entry point"
            raise ValueError(f"the plugin name {record.name!r} is taken; rename the {what}")
        try:
            self.manager.register(plugin, record.name)
            self.manager.check_pending()
            if not self.manager.get_hookcallers(plugin):
                raise NoHooks("it registers nothing: no function of it is marked with @hookimpl")
            self._collect(record)
        except BaseException:
            if self.manager.has_plugin(record.name):
                self.manager.unregister(name=record.name)
            raise
        self.records.append(record)

    def provided_by(self, architecture: str) -> PluginRecord | None:
        """The record of the plugin that provides the family of that name."""
        return self._owner.get(architecture)

    def infer(self, config: ModelConfig) -> list[tuple[Architecture, PluginRecord]]:
        """What the fallback plugins make of a config that nobody has described.

        A plugin that raises is set aside with the reason; input errors pass through.
        """
        found = []
        for record, function in self._implementations("qlora_infer_architecture"):
            try:
                architecture = function(config=copy.deepcopy(config))  # each its own to change
                if architecture is not None:
                    found.append((_typed(architecture, Architecture), record))
            except QloraError:
                raise
            except Exception as error:
                self._set_aside(record, error)
        return found

    def prepare(self, hook: str, subject: Any, architecture: Architecture) -> None:
        """Call a prepare hook of every plugin. Raises PluginError naming the first that fails."""
        argument = hook.removeprefix("qlora_prepare_")
        for record, function in self._implementations(hook):
            try:
                function(**{argument: subject, "architecture": architecture})
            except Exception as error:
                raise PluginError(
                    f"plugin {record.name!r} ({record.source} {record.version}) failed in {hook}: "
                    f"{type(error).__name__}: {error}",
                    f"repair or remove it, or switch it off with --block {record.name}",
                ) from error

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call an observe hook. A plugin that raises is logged once and muted."""
        for record, function in self._implementations(hook):
            try:
                function(**arguments)
            except Exception as error:
                log.warning(
                    "plugin %r failed in %s and is muted for this run: %s: %s",
                    record.name,
                    hook,
                    type(error).__name__,
                    error,
                )
                self._set_aside(record, error)

    def _load_entry(self, entry: EntryPoint, blocked: frozenset[str]) -> None:
        name, version = origin(entry.dist) if entry.dist else ("", "")
        record = PluginRecord(entry.name, name or "unknown", version or "unknown")
        if entry.name in blocked:
            record.status, record.detail = "blocked", "switched off by --block"
            record.repair = f"leave out --block {entry.name}"
            self.records.append(record)
            return
        try:
            with watched(record):
                self.add(entry.load(), record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an import may raise anything, SystemExit too
            self.records.append(record)
            mark_broken(record, error)
            log.warning("plugin %r (%s %s) is left out: %s\n  -> %s", record.name, record.source,
                        record.version, record.detail, record.repair)  # fmt: skip

    def _collect(self, record: PluginRecord) -> None:
        families = self._ask(record, "qlora_architectures", Architecture, self.architectures)
        formats = self._ask(record, "qlora_prompt_formats", PromptFormat, self.prompt_formats)
        self.architectures |= families
        self.prompt_formats |= formats
        self._owner |= dict.fromkeys(families, record)
        record.provides = tuple(families)

    def _ask(
        self, record: PluginRecord, hook: str, kind: type, known: dict[str, Any]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            if implementation.plugin_name != record.name:
                continue
            for value in implementation.function():
                name = _typed(value, kind).name
                if name in known or name in found:
                    owner = self._owner.get(name)
                    raise ValueError(
                        f"{kind.__name__} {name!r} already comes from plugin "
                        f"{owner.name if owner else record.name!r}; choose another name"
                    )
                found[name] = value
        return found

    def _implementations(self, hook: str) -> Iterator[tuple[PluginRecord, Callable[..., Any]]]:
        active = {record.name: record for record in self.records if record.status == "active"}
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            record = active.get(implementation.plugin_name)
            if record is not None:
                yield record, _with_known_arguments(implementation)

    def _set_aside(self, record: PluginRecord, error: BaseException) -> None:
        mark_broken(record, error)
        for name in record.provides:
            self.architectures.pop(name, None)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _with_known_arguments(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """The implementation, called with those arguments that it names (as pluggy does)."""

    def call(**arguments: Any) -> Any:
        wanted = {name: arguments[name] for name in implementation.argnames}
        return implementation.function(**wanted)

    return call
