"""The files of a checkpoint: fetched when they are on the Hub, and whole before anything loads."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import modeling_utils
from transformers.utils import logging as transformers_logging

from qlora_core.errors import BadInput
from qlora_core.models.remote_code import Trust
from qlora_core.registry import hub
from qlora_core.registry.files import ModelFolder, read_json

log = logging.getLogger("qlora-core")

SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
WEIGHTS = "*.safetensors"
MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
IGNORED = ("*/*", "consolidated*")
"""What a repository holds beside the model itself: other formats, the original release."""


def fetch(
    model: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
) -> Path:
    """The local folder of ``model``: itself, or a Hub repository's snapshot in the Hub's cache.

    Shows huggingface_hub's progress. Raises BadInput for an id that is gated, mistyped or out
    of reach, and before a download that does not fit on the disk.
    """
    source = ModelFolder(model, revision=revision, offline=offline)
    if source.folder is not None:
        return source.folder
    patterns = [*SETTINGS, WEIGHTS, *(("*.py",) if trust_remote_code else ())]
    return _download(source.name, patterns, revision, offline=offline)


def _download(hub_id: str, patterns: list[str], revision: str | None, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": patterns,
        "ignore_patterns": list(IGNORED),
        "local_files_only": offline,
    }
    with hub.clear_errors(hub_id, revision, offline=offline):
        if not offline:
            require_room(hub_id, _bytes_to_download(hub_id, revision, patterns), _cache())
        return Path(snapshot_download(hub_id, **wanted))


def _bytes_to_download(hub_id: str, revision: str | None, patterns: list[str]) -> int:
    """The sizes that the Hub states, of the files that the cache does not hold yet."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils._paths import filter_repo_objects

    info = HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    files = filter_repo_objects(
        info.siblings or [],
        allow_patterns=patterns,
        ignore_patterns=list(IGNORED),
        key=lambda file: file.rfilename,
    )
    return sum(
        file.size or 0
        for file in files
        if not isinstance(try_to_load_from_cache(hub_id, file.rfilename, revision=info.sha), str)
    )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def require_room(name: str, needed: int, where: Path) -> None:
    """Raise BadInput where ``where`` has fewer than ``needed`` bytes left."""
    existing = next(path for path in (where, *where.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise BadInput(
            f"{name} needs {needed / 2**30:.1f} GiB more on the disk of {where}, "
            f"which has {free / 2**30:.1f} GiB left",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )


def refuse_other_quantization(config: Mapping[str, Any], name: str) -> bool:
    """Whether the checkpoint is already 4-bit by bitsandbytes; False for a 16-bit one.

    Raises BadInput for checkpoints that another method has quantized.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        text = config.get("text_config")
        settings = text.get("quantization_config") if isinstance(text, Mapping) else None
    if not isinstance(settings, Mapping):
        return False
    method = str(settings.get("quant_method", "bitsandbytes"))
    if method == "bitsandbytes" and settings.get("load_in_4bit"):
        return True
    if method == "bitsandbytes":
        method = "bitsandbytes 8-bit"
    raise BadInput(
        f"{name} is already quantized by {method}; what is needed is 16-bit or bitsandbytes 4-bit",
        "take the 16-bit original of this model (its card usually names it)",
    )


def compare_quantization(stated: str, asked: str | None) -> None:
    """Raise BadInput where 16 bits are asked of a 4-bit folder; warn of another 4-bit type."""
    if asked is None:
        raise BadInput(
            f"the folder holds 4-bit weights ({stated}), and 16-bit ones are asked for",
            "take the 16-bit original, or leave quantize at nf4",
        )
    if asked != stated:
        log.warning("the folder holds %s weights: they stay, and are not made %s", stated, asked)


def require_whole_weights(folder: Path) -> list[Path]:
    """The safetensors files of ``folder``, each checked to be there and of its stated length.

    Reads headers only. Raises BadInput for a folder without safetensors, a missing shard,
    a truncated file and a Git LFS pointer.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_index(index)
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise BadInput(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files, {missing[0]} first",
                "download the model again",
            )
        files = [folder / name for name in shards]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        raise _no_safetensors(folder)
    for file in files:
        tensor_names(file)
    return files


def read_index(index: Path) -> list[str]:
    """The shards that an index names. Raises BadInput for one that names files elsewhere."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{index} is no index of weight files", "download it again") from None
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{index} names the file {name!r}", "an index names files beside it")
    return shards


def tensor_names(file: Path) -> list[str]:
    """The tensors of a safetensors file, by its header. Raises BadInput where it is not whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise BadInput(
                f"{file} is a Git LFS pointer, not the weights",
                "run `git lfs pull` in that folder, or download the model with `hf download`",
            )
        length = int.from_bytes(start, "little")
        header = stream.read(length) if 2 <= length <= min(size - 8, MAX_HEADER) else b""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        raise BadInput(f"{file} is not a whole safetensors file", "download it again") from None
    if size != 8 + length + end:
        raise BadInput(
            f"{file} has {size:,} bytes and should have {8 + length + end:,}: it is cut or corrupt",
            "download it again",
        )
    return list(entries)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar in a log file, and no table of tensors: we report those ourselves."""
    table = logging.getLogger("transformers.modeling_utils")
    hidden_bar = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()

    def shown(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    table.addFilter(shown)
    if hidden_bar:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        table.removeFilter(shown)
        if hidden_bar:
            transformers_logging.enable_progress_bar()


@contextmanager
def reading_not_mapping() -> Iterator[None]:
    """Let transformers read each tensor from its file, instead of mapping whole files.

    transformers does so on Windows only. A mapped file counts as the process's memory page by
    page until loading ends (all 16 bits of a model that is to become 4-bit), what stays in 16
    bits would point into it for the whole run, and a file replaced meanwhile would crash it.
    """
    usual = modeling_utils.safe_open
    modeling_utils.safe_open = partial(_open_for_reading, usual)
    try:
        yield
    finally:
        modeling_utils.safe_open = usual


def _open_for_reading(usual: Callable[..., Any], file: str, **settings: Any) -> Any:
    return usual(file, **{**settings, "backend": "pread"})


def require_all_weights(information: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The tensors that the model had no place for, from transformers' ``loading_info``.

    Raises BadInput where the model expects weights that the checkpoint does not hold, or
    holds in another shape: they would start at random.
    """
    missing = sorted(information["missing_keys"])
    wrong = sorted(str(entry[0]) for entry in information["mismatched_keys"])
    for kind, names in (("has no weights for", missing), ("has the wrong shape for", wrong)):
        if names:
            raise BadInput(
                f"{name} {kind} {len(names)} tensors of its own config: {', '.join(names[:4])}"
                + (", ..." if len(names) > 4 else "")
                + "; they would start at random",
                "take the whole base model: its config and weights must belong together",
            )
    if information.get("error_msgs"):
        raise BadInput(f"{name}: {information['error_msgs'][0]}", "download the model again")
    return _left_over(information, name)


def _left_over(information: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = tuple(sorted(information["unexpected_keys"]))
    if names:
        log.warning(
            "%s holds %d tensors that its model class has no place for: %s%s",
            name, len(names), ", ".join(names[:4]), ", ..." if len(names) > 4 else "",
        )  # fmt: skip
    return names


def _no_safetensors(folder: Path) -> BadInput:
    others = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if others:
        return BadInput(
            f"{folder} holds its weights only as {others[0]}: such files can run code when opened",
            "take a revision with safetensors, or convert it (safetensors' `convert` Space)",
        )
    return BadInput(
        f"{folder} holds no model.safetensors",
        "give the folder of a whole model; a download may have been interrupted",
    )


def is_quantized_folder(folder: Path) -> bool:
    """Whether the folder's config says that bitsandbytes made its weights 4-bit."""
    return refuse_other_quantization(read_json(folder / "config.json"), str(folder))
