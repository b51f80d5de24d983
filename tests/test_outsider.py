"""A stranger's package enters by its own entry point and sits the same exam."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARROT = ROOT / "examples" / "qlora-core-parrot"


@pytest.fixture(scope="module")
def outsider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own, in which everything of ours and the stranger's package are installed."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scheme = sysconfig.get_preferred_scheme("prefix")
    paths = sysconfig.get_paths(scheme, {"base": str(folder), "platbase": str(folder)})
    site = Path(paths["purelib"])
    (site / "ours.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    python = Path(paths["scripts"]) / ("python.exe" if sys.platform == "win32" else "python")
    # pip of this environment installs into the other one, without asking any index.
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    copy = tmp_path_factory.mktemp("source") / "parrot"
    shutil.copytree(PARROT, copy)  # building writes into the source folder
    subprocess.run([*command, "--no-build-isolation", copy], check=True)
    return python


def qlora_core(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "qlora_core.cli.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_it_is_listed_with_its_origin(outsider: Path) -> None:
    listed = qlora_core(outsider, "plugins").stdout
    rows = [line.split() for line in listed.splitlines()]
    assert ["active", "parrot", "qlora-core-parrot", "0.3.0", "parrot"] in rows


def test_its_models_are_detected_without_a_word_from_us(outsider: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "parrot"}')
    found = qlora_core(outsider, "detect", tmp_path)
    assert "provided by       qlora-core-parrot 0.3.0" in found.stdout, found.stderr
    assert "perch.qkv perch.out beak.open beak.close" in found.stdout


def test_it_passes_the_contract(outsider: Path) -> None:
    checked = qlora_core(outsider, "plugins", "check", "parrot")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " passed" in checked.stdout


def test_it_can_be_switched_off(outsider: Path, tmp_path: Path) -> None:
    listed = qlora_core(outsider, "plugins", "--block", "parrot").stdout
    assert "blocked  parrot" in listed


def test_here_it_is_not_installed() -> None:
    listed = qlora_core(Path(sys.executable), "plugins").stdout
    assert "parrot" not in listed


def test_its_models_train_answer_and_merge(outsider: Path, tmp_path: Path) -> None:
    model, data, run = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "run"
    build = (
        "import sys, shutil, qlora_base\n"
        "from qlora_core_parrot import register\n"
        "from qlora_core_parrot.modeling import ParrotConfig, ParrotForCausalLM\n"
        "register()\n"
        "ParrotForCausalLM(ParrotConfig(vocab_size=2048)).save_pretrained(sys.argv[1])\n"
        "for name in ('tokenizer.json', 'tokenizer_config.json'):\n"
        "    shutil.copy(qlora_base.MODEL / name, sys.argv[1])\n"
    )
    subprocess.run([outsider, "-c", build, model], check=True, capture_output=True)
    data.write_text('{"question": "Polly?", "answer": "Cracker!"}\n' * 2)
    steps = ("--max-steps", "1", "--max-length", "64", "--device", "cpu")
    for arguments in (
        ("train", "--model", model, "--data", data, "--output", run, *steps),
        ("generate", "--adapter", run, "--prompt", "Polly?", "--max-new-tokens", "3"),
        ("merge", run, "--output", tmp_path / "merged"),
    ):
        done = qlora_core(outsider, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
