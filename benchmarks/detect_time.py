"""How long `qlora-core detect` takes as a whole process, per model.

python benchmarks/detect_time.py [--runs 7] [--output results/detect_time.json]

Run it in an environment with the base install only (`pip install qlora-core`), where there is no
torch; it needs nothing else. Every family's example and the published shapes of
tests/real_configs.py are written to folders and detected in fresh interpreters.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_core.registry.detect import installed

TESTS = Path(__file__).resolve().parents[1] / "tests"


def configs() -> dict[str, tuple[str, dict[str, Any]]]:
    """name -> (family that must be found, config)."""
    families = installed().architectures.values()
    found = {f"{a.name} (example)": (a.name, dict(a.example)) for a in families}
    spec = importlib.util.spec_from_file_location("real_configs", TESTS / "real_configs.py")
    if spec is None or spec.loader is None:
        return found
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_configs"] = module
    spec.loader.exec_module(module)
    return found | {real.name: (real.family, real.config) for real in module.REAL}


def seconds(folder: Path, family: str, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        command = [sys.executable, "-m", "qlora_core.cli.main", "detect", str(folder), "--json"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - began)
        assert json.loads(printed)["architecture"]["name"] == family, printed
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    medians = {}
    with tempfile.TemporaryDirectory() as root:
        for number, (name, (family, config)) in enumerate(configs().items()):
            folder = Path(root) / str(number)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            medians[name] = statistics.median(seconds(folder, family, arguments.runs))
    for name, median in sorted(medians.items(), key=lambda pair: -pair[1])[:10]:
        print(f"{name:<32}{median * 1000:>7.0f} ms")
    torch = importlib.util.find_spec("torch") is not None
    slowest, middle = max(medians.values()), statistics.median(medians.values())
    print(
        f"{len(medians)} models, medians of {arguments.runs} processes: slowest "
        f"{slowest * 1000:.0f} ms, middle {middle * 1000:.0f} ms (torch installed: {torch})"
    )
    if arguments.output:
        record = {"python": platform.python_version(), "torch_installed": torch, "seconds": medians}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
