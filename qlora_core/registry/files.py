"""Read a model's settings files: from a folder, or from the Hub when an id was given.

A local path never touches the network. Only JSON is read, within stated limits;
nothing is executed and no weights are opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.registry import hub

MAX_BYTES = 4 * 2**20
"""The largest settings file that is read. Real ones are some kilobytes."""
MAX_PARTS = 100_000
"""The most objects, lists and keys: each costs far more time and memory than its bytes."""
CHECK = "check that this is the right file"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w.-]*")


class ModelFolder:
    """The settings files of one model: ``folder`` on disk, or the Hub repository ``hub_id``."""

    def __init__(self, model: str | Path, *, revision: str | None = None, offline: bool = False):
        self.name = str(model)
        self.revision = revision
        self.offline = offline
        # os.path's answers False where Path's raises: unknown users, names that are too long
        path = Path(os.path.expanduser(model))
        self.folder: Path | None = None
        if os.path.isdir(path):
            self.folder = path
        elif os.path.isfile(path):
            self.folder = path.parent
        elif not _may_be_hub_id(self.name):
            raise BadInput(
                f"there is no folder {self.name}",
                "give a folder that holds a config.json, or a Hub id such as OWNER/NAME",
            )

    def json(self, filename: str) -> dict[str, Any] | None:
        """The mapping that ``filename`` holds, or None where the model has no such file.

        Raises BadInput for a file that is too large, not a file, or not one JSON object.
        """
        path = self.path(filename)
        return None if path is None else read_json(path, within=self.folder)

    def path(self, filename: str) -> Path | None:
        """The local path of ``filename``, downloaded first where the model is on the Hub."""
        if self.folder is None:
            return hub.download(self.name, filename, self.revision, offline=self.offline)
        path = self.folder / filename
        return path if os.path.lexists(path) else None

    def config(self) -> dict[str, Any]:
        """The model's ``config.json``. Raises BadInput where there is none, with what is there."""
        config = self.json("config.json")
        if config is None:
            raise BadInput(f"{self.name} has no config.json{self._what_it_is()}", self._remedy())
        return config

    def _holds(self, filename: str) -> bool:
        return self.folder is not None and (self.folder / filename).is_file()

    def _what_it_is(self) -> str:
        if self._holds("adapter_config.json"):
            return ": it is a LoRA adapter, not a model"
        if self._holds("params.json"):
            return ": it holds weights in the original release's format"
        if self.folder is not None and any(self.folder.glob("*.gguf")):
            return ": it holds GGUF files, made for inference"
        return ""

    def _remedy(self) -> str:
        if self._holds("adapter_config.json"):
            return "give the base model's folder (base_model_name_or_path in adapter_config.json)"
        return "give the folder of a model in the Hugging Face format"


def read_json(path: Path, *, within: Path | None = None) -> dict[str, Any]:
    """One JSON object from a file as `read_text` takes it.

    Refused with BadInput: keys that stand twice, NaN, more than 100,000 objects, lists and keys,
    and nesting too deep to parse. Infinity is read: published configs hold it, as the word or as
    transformers 5 writes it, ``{"__float__": "Infinity"}``.
    """
    text = read_text(path, within=within)
    if sum(map(text.count, "{[:")) > MAX_PARTS:
        raise BadInput(f"{path} holds more than {MAX_PARTS:,} objects, lists and keys", CHECK)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadInput(f"{path} is not valid JSON: {what}", "repair the file") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a {type(value).__name__}, not an object", "check the file")
    return value


def read_text(path: Path, *, within: Path | None = None) -> str:
    """The UTF-8 text of a regular file of at most 4 MiB.

    Raises BadInput for anything else, such as pipes and devices, for a file that may not be
    read, and for a link that leaves ``within`` (other than into a Hub cache's ``blobs``).
    """
    try:
        target = path.resolve(strict=True)
        if within is not None and path.is_symlink() and not _allowed(target, within.resolve()):
            problem = f"{path} is a link to {target}, outside the folder"
            raise BadInput(problem, "copy the file here")
        if not target.is_file():
            raise BadInput(f"{path} is not a regular file", "give the folder of a model")
        with target.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
            size = max(len(content), target.stat().st_size)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
        what = getattr(error, "strerror", None) or "a link that leads nowhere"
        raise BadInput(f"{path} cannot be read: {what}", "check the file") from None
    if size > MAX_BYTES:
        problem = f"{path} has {size:,} bytes; settings files have at most {MAX_BYTES:,}"
        raise BadInput(problem, CHECK)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8"
        raise BadInput(f"{path} is not valid text: {what}", "repair the file") from None


def chat_template(folder: ModelFolder, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template's text, from its own file or from ``tokenizer_config.json``."""
    path = folder.path("chat_template.jinja")
    if path is not None:
        return read_text(path, within=folder.folder)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as ``object_pairs_hook`` makes it. Raises ValueError for a repeated key."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'the key "{twice[:60]}" stands twice in one object')
    return mapping


def _object(pairs: list[tuple[str, Any]]) -> Any:
    mapping = no_key_twice(pairs)
    if mapping.keys() == {"__float__"}:
        return _constant(str(mapping["__float__"]))
    return mapping


def _constant(name: str) -> float:
    if name not in ("Infinity", "-Infinity"):
        raise ValueError(f"{name[:60]} is not JSON")
    return float(name)


def _allowed(target: Path, folder: Path) -> bool:
    """Whether a link may lead there: below the folder, or to the blobs of its Hub cache."""
    cache = target.parent.parent if target.parent.name == "blobs" else folder
    return target.is_relative_to(folder) or folder.is_relative_to(cache / "snapshots")


def _may_be_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))
