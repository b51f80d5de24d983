"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Spinning OpenMP threads cost 2.5x on a shared machine; must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data: QLORA_TEST_DATA, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("QLORA_TEST_DATA", beside))
    path = path / "data" if (path / "data").is_dir() else path
    if not (path / "README.md").is_file():
        pytest.skip(f"needs the test data at {path} (set QLORA_TEST_DATA)")
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``QLORA_SHARD=K/N`` keeps every N-th test, from the K-th: CI runs another share each day."""
    shard = os.environ.get("QLORA_SHARD")
    if not shard:
        return
    place, _, count = shard.partition("/")
    kept = items[int(place) % int(count) :: int(count)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
