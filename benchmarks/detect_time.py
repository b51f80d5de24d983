"""How long `qlora-core detect` takes as a whole process, per model.

python benchmarks/detect_time.py [--runs 3] [--output results/detect_time.json]

Run it in an environment with the base install only (`pip install qlora-core`), where there is no
torch; it needs nothing else. Every family's example and the published shapes of
tests/real_configs.py are written to folders and detected in fresh interpreters. Kept is the least
of the runs: the time on the clock, and the processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
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


def seconds(folder: Path, family: str, runs: int) -> tuple[float, float]:
    """On the clock and of the processor, each the least of so many runs."""
    clock, processor = [], []
    for _ in range(runs):
        began, used = time.perf_counter(), used_by_children()
        command = [sys.executable, "-m", "qlora_core.cli.main", "detect", str(folder), "--json"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        clock.append(time.perf_counter() - began)
        processor.append(used_by_children() - used)
        assert json.loads(printed)["architecture"]["name"] == family, printed
    return min(clock), min(processor)


def used_by_children() -> float:
    """Seconds of processor time, in user and in system mode."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for number, (name, (family, config)) in enumerate(configs().items()):
            folder = Path(root) / str(number)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            found[name] = seconds(folder, family, arguments.runs)
    report(found, arguments.runs, arguments.output)


def report(found: dict[str, tuple[float, float]], runs: int, output: Path | None) -> None:
    """The ten slowest, and a summary; all of it into ``output``."""
    for name, (clock, processor) in sorted(found.items(), key=lambda pair: -pair[1][0])[:10]:
        print(f"{name:<32}{clock * 1000:>7.0f} ms on the clock{processor * 1000:>7.0f} ms of work")
    summary: dict[str, Any] = {
        "python": platform.python_version(),
        "torch_installed": importlib.util.find_spec("torch") is not None,
        "models": len(found),
        "runs": runs,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),  # of the last five minutes, our own process included
    }
    for place, kind in enumerate(("seconds", "processor_seconds")):
        times = {name: round(pair[place], 4) for name, pair in found.items()}
        summary[f"slowest_{kind}"] = max(times.values())
        summary[f"median_{kind}"] = round(statistics.median(times.values()), 4)
        summary[kind] = times
    print(json.dumps({key: value for key, value in summary.items() if type(value) is not dict}))
    if output:
        output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
