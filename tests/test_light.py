"""The base install: no torch in the environment, and nothing heavy at start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pluggy
import pytest

import qlora_core
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import Registry

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the base install holds, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(pluggy.__file__).parent, site / "pluggy")
    shutil.copytree(ROOT / "qlora_core", site / "qlora_core")
    shutil.copytree(ROOT / "plugins", site / "qlora_plugins")
    info = site / "qlora_core-0.1.0.dist-info"
    info.mkdir()
    ours = distribution("qlora-core")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: qlora-core\nVersion: {ours.version}\n"
    )
    (info / "entry_points.txt").write_text(str(ours.read_text("entry_points.txt")))
    return site


def run(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the standard library and ``site`` only."""
    start = (
        f"import sys; sys.path.append({str(site)!r}); "
        "from qlora_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-I", "-S", "-c", start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=site)


def test_help_needs_no_torch(bare: Path) -> None:
    helped = run(bare, "--help")
    assert helped.returncode == 0, helped.stderr
    assert "detect" in helped.stdout


@pytest.mark.parametrize("command", ["detect", "train", "generate", "merge", "plugins", "demo"])
def test_the_help_of_every_command_needs_no_torch(bare: Path, command: str) -> None:
    helped = run(bare, command, "--help")
    assert helped.returncode == 0, helped.stderr


def test_every_family_is_detected_without_torch(bare: Path, tmp_path: Path) -> None:
    examples = {name: dict(a.example) for name, a in installed().architectures.items()}
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    code = (
        f"import sys, json; sys.path.append({str(bare)!r}); import qlora_core; "
        f"examples = json.load(open({str(tmp_path / 'examples.json')!r})); "
        "found = {n: qlora_core.detect(c).architecture.name for n, c in examples.items()}; "
        "print(json.dumps(found))"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bare)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {name: name for name in examples}


def test_detect_prints_its_contract_without_torch(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = run(bare, "detect", tmp_path, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["architecture"]["name"] == "llama"


def test_a_family_that_needs_the_engine_says_how_to_install_it(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody_described_this"}')
    found = run(bare, "detect", tmp_path)
    assert found.returncode == 2
    assert 'pip install "qlora-core[train]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_training_without_the_engine_says_how_to_install_it(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a"}\n')
    trained = run(bare, "train", "--model", tmp_path, "--data", data, "--output", tmp_path / "out")
    assert trained.returncode == 2
    assert 'pip install "qlora-core[train]"' in trained.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [("demo",), ("detect", "MODEL", "--build"), ("generate", "--model", "MODEL", "--prompt", "a")],
    ids=lambda c: c[0],
)
def test_a_command_that_needs_the_engine_says_how_to_install_it(
    bare: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    shutil.copytree(ROOT / "base_model", bare / "qlora_base", dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    arguments = [str(tmp_path) if part == "MODEL" else part for part in command]
    asked = run(bare, *arguments)
    assert asked.returncode == 2
    assert asked.stderr.count('pip install "qlora-core[train]"') == 1
    assert "Traceback" not in asked.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = sorted(qlora_core.ENGINE_PACKAGES | {"huggingface_hub"})
    code = "import sys, qlora_core, qlora_core.cli.main; "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_detecting_a_folder_imports_nothing_of_training_and_no_hub_client(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    code = "import sys; from qlora_core.cli.main import main; main(['detect', sys.argv[1]]); "
    code += "print(sorted(name for name in sys.modules if name.startswith("
    code += "('qlora_core.training.', 'qlora_core.data.', 'qlora_core.models.', 'huggingface_hub'))"
    code += "))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    detected = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "llama" in detected.stdout
    assert detected.stdout.splitlines()[-1] == "[]"


def test_the_metadata_of_a_distribution_is_read_once_for_all_its_plugins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, of_file = [], PathDistribution.read_text

    def counted(self: PathDistribution, name: str) -> str | None:
        read.extend([self] if name == "METADATA" else [])
        return of_file(self, name)  # type: ignore[arg-type]  # one of its own overloads

    monkeypatch.setattr(PathDistribution, "read_text", counted)
    registry = Registry.from_environment()
    assert {record.source for record in registry.records} >= {"qlora-core"}
    assert len(read) == len(set(map(id, read))) > 0


def test_every_public_name_resolves() -> None:
    assert [name for name in qlora_core.__all__ if getattr(qlora_core, name, None) is None] == []
