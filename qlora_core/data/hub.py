"""Rows of a dataset on the Hub, through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from qlora_core.data.json_rows import Row, without_nulls
from qlora_core.errors import BadInput, first_line


def read_hub(
    name: str, config: str | None, splits: tuple[str, ...], *, offline: bool = False
) -> Iterator[Row]:
    """The rows of the first of ``splits`` that the dataset has; ``line`` is the row number.

    Raises BadInput for an id that is mistyped, gated or out of reach, for a configuration
    or a split that does not exist (with those that do).
    """
    import datasets

    try:
        with _offline() if offline else nullcontext():
            loaded = datasets.load_dataset(name, config)
    except ConnectionError as error:
        raise _unreachable(name, error) from None
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise _refused(name, error) from None
    split = next((split for split in splits if split in loaded), None)
    if split is None:
        raise BadInput(
            f"the dataset {name} has no split {' or '.join(splits)}",
            f"name one of its splits: {', '.join(f'{name}:{split}' for split in loaded)}",
        )
    number = 0
    try:
        for number, values in enumerate(loaded[split], start=1):
            yield Row(f"{name}:{split}", number, {k: without_nulls(v) for k, v in values.items()})
    except UnicodeDecodeError:
        raise BadInput(
            f"{name}:{split}:{number + 1}: the row holds bytes that are not UTF-8",
            "take a revision of the dataset that is mended, or a local copy with --skip-bad",
        ) from None


@contextmanager
def _offline() -> Iterator[None]:
    """No network for this call: ``local_files_only`` alone still downloads (datasets 5.2)."""
    import datasets
    import huggingface_hub

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _unreachable(name: str, error: Exception) -> BadInput:
    return BadInput(
        f"the dataset {name} is not on this machine and the Hub cannot be reached: "
        f"{first_line(error)[:200]}",
        "check the connection, --offline and HF_HUB_OFFLINE, or name a local file",
    )


def _refused(name: str, error: Exception) -> BadInput:
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        return BadInput(f"the dataset {name}: {first_line(error)[:200]}", f"write {name}/CONFIG")
    if "gated" in text:
        return BadInput(
            f"the dataset {name} is gated", "accept its terms on the Hub, then `hf auth login`"
        )
    return BadInput(
        f"the dataset {name} cannot be loaded: {first_line(error)[:200]}",
        "check the spelling of the id, or log in with `hf auth login` if it is private",
    )
