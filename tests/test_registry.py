"""Plugins are loaded one by one, whole or not at all, and nothing depends on their order."""

from __future__ import annotations

import dataclasses
import logging
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_core import Architecture, LoraTargets, PromptFormat, Registry, hookimpl
from qlora_core.errors import BadInput, PluginError
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import PluginRecord

PLAIN = PromptFormat(name="plain", user="Q: {content}\n", assistant="A: {content}{eos}\n")


def family(name: str = "toy", **facts: Any) -> Architecture:
    facts = {"model_types": (name,), "targets": LoraTargets(attention=("q_proj",))} | facts
    return Architecture(name=name, prompt=PLAIN, **facts)


def plugin(*families: Any, **hooks: Any) -> Any:
    """A plugin object that provides ``families`` and has the given hooks."""
    functions = {name: hookimpl(function) for name, function in hooks.items()}
    functions["qlora_architectures"] = hookimpl(lambda: list(families))
    return SimpleNamespace(**functions)


def record(name: str) -> PluginRecord:
    return PluginRecord(name, f"{name}-package", "1.0")


def test_a_plugin_provides_families_and_is_remembered_as_their_origin() -> None:
    registry = Registry()
    registry.add(plugin(family()), record("mine"))
    assert registry.provided_by("toy") == dataclasses.replace(record("mine"), provides=("toy",))


def test_a_family_name_that_is_taken_sets_the_second_plugin_aside_whole() -> None:
    registry = Registry()
    registry.add(plugin(family("toy")), record("first"))
    with pytest.raises(ValueError, match="already comes from plugin 'first'"):
        registry.add(plugin(family("other"), family("toy")), record("second"))
    assert list(registry.architectures) == ["toy"]
    assert not registry.manager.has_plugin("second")


@pytest.mark.parametrize("wrong", [42, "llama", None, LoraTargets()])
def test_a_plugin_that_provides_something_else_is_refused(wrong: Any) -> None:
    registry = Registry()
    with pytest.raises(TypeError, match="expected Architecture"):
        registry.add(plugin(wrong), record("wrong"))
    assert not registry.records


def test_a_misspelt_hook_is_refused() -> None:
    registry = Registry()
    with pytest.raises(Exception, match="qlora_architecturs"):
        registry.add(plugin(qlora_architecturs=lambda: None), record("typo"))
    assert not registry.manager.has_plugin("typo")


def test_a_plugin_without_hooks_is_broken_and_told_to_mark_its_functions(caplog: Any) -> None:
    registry = Registry()
    registry._load_entry(EntryPoint("idle", "colorsys", "qlora_core"), frozenset())
    (idle,) = registry.records
    assert (idle.status, idle.detail.partition(": ")[0]) == ("broken", "NoHooks")
    assert "mark its functions with @hookimpl" in idle.repair
    assert "it registers nothing" in caplog.text


@pytest.mark.parametrize("text", ["x = 1\n", "def qlora_architectures():\n    return []\n"])
def test_a_plugin_file_without_hooks_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "idle.py"
    path.write_text(text)
    with pytest.raises(PluginError, match="it registers nothing") as refused:
        Registry().load_file(path)
    assert "mark its functions with @hookimpl" in refused.value.remedy


def test_a_slow_plugin_file_is_named_and_its_prints_leave_standard_output_alone(
    tmp_path: Path, monkeypatch: Any, caplog: Any, capsys: Any
) -> None:
    monkeypatch.setattr("qlora_core.registry.loading.SLOW_SECONDS", -1.0)
    path = tmp_path / "slow.py"
    path.write_text(
        "from qlora_core import hookimpl\nprint('hello')\n"
        "@hookimpl\ndef qlora_architectures():\n    return []\n"
    )
    Registry().load_file(path)
    assert f"plugin 'slow' ({path}) took" in caplog.text
    assert capsys.readouterr().out == ""


def test_an_entry_point_that_cannot_be_imported_is_broken_with_its_repair() -> None:
    registry = Registry()
    registry._load_entry(EntryPoint("gone", "no_such_module_here", "qlora_core"), frozenset())
    (broken,) = registry.records
    assert (broken.status, broken.repair) == ("broken", "pip install no_such_module_here")


def test_a_plugin_that_exits_at_import_does_not_end_the_process(tmp_path: Path) -> None:
    registry = Registry()
    path = tmp_path / "leaver.py"
    path.write_text("raise SystemExit(3)")
    with pytest.raises(PluginError, match="SystemExit"):
        registry.load_file(path)
    assert not registry.records


def test_a_plugin_file_needs_no_packaging(tmp_path: Path) -> None:
    path = tmp_path / "my_family.py"
    path.write_text(
        "from qlora_core import Architecture, LoraTargets, PromptFormat, hookimpl\n"
        "@hookimpl\n"
        "def qlora_architectures():\n"
        "    fmt = PromptFormat(name='p', user='{content}', assistant='{content}')\n"
        "    return [Architecture(name='mine', prompt=fmt, targets=LoraTargets())]\n"
    )
    registry = Registry.from_environment(files=[path])
    assert registry.provided_by("mine").source == str(path)


def test_a_blocked_plugin_is_listed_and_not_loaded() -> None:
    registry = Registry.from_environment(block=["llama"])
    assert {r.name: r.status for r in registry.records}["llama"] == "blocked"
    assert "llama" not in registry.architectures


def test_blocking_an_unknown_plugin_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no plugin is called nosuch"):
        Registry.from_environment(block=["nosuch"])


def test_a_prepare_hook_that_raises_stops_the_run_and_names_the_plugin() -> None:
    registry = Registry()

    def fail(model: Any) -> None:
        raise RuntimeError("no such layer")

    registry.add(plugin(qlora_prepare_model=fail), record("bad"))
    with pytest.raises(PluginError, match=r"plugin 'bad' \(bad-package 1.0\).*no such layer"):
        registry.prepare("qlora_prepare_model", object(), family())


def test_an_observer_that_raises_is_logged_once_and_muted(caplog: Any) -> None:
    registry, calls = Registry(), []

    def fail(step: Any) -> None:
        raise OSError("disk full")

    registry.add(plugin(qlora_step_finished=fail), record("bad"))
    registry.add(plugin(qlora_step_finished=lambda step: calls.append(step)), record("good"))
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            registry.observe("qlora_step_finished", run=None, step=step)
    assert calls == [0, 1, 2]
    assert [r.message.count("disk full") for r in caplog.records] == [1]


def test_a_fallback_that_raises_is_set_aside_and_the_others_asked() -> None:
    registry = Registry()

    def fail(config: Any) -> None:
        raise RuntimeError("boom")

    registry.add(plugin(qlora_infer_architecture=fail), record("bad"))
    registry.add(plugin(qlora_infer_architecture=lambda config: family("guess")), record("good"))
    assert [a.name for a, _ in registry.infer({"model_type": "new"})] == ["guess"]
    assert {r.name: r.status for r in registry.records} == {"bad": "broken", "good": "active"}


def test_every_installed_plugin_of_ours_is_active() -> None:
    ours = [r for r in installed().records if r.source == "qlora-core"]
    assert ours
    assert [(r.name, r.detail) for r in ours if r.status != "active"] == []
