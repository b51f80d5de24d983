"""Read a model's settings files: from a folder, or from the Hub when an id was given.

A local path never touches the network. Only JSON is read, within stated limits;
nothing is executed and no weights are opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_core.errors import BadInput
from qlora_core.registry import hub

MAX_BYTES = 4 * 2**20
"""The largest settings file that is read. Real ones are some kilobytes."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w.-]*")


class ModelFolder:
    """The settings files of one model: ``folder`` on disk, or the Hub repository ``hub_id``."""

    def __init__(self, model: str | Path, *, revision: str | None = None, offline: bool = False):
        self.name = str(model)
        self.revision = revision
        self.offline = offline
        path = Path(model).expanduser()
        self.folder: Path | None = None
        if path.is_dir():
            self.folder = path
        elif path.is_file():
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
        return path if path.exists() or path.is_symlink() else None

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
    """One JSON object from a regular file of at most 4 MiB.

    Refused with BadInput: links that leave ``within`` (other than into a Hub cache's
    ``blobs``), keys that stand twice, NaN and Infinity, and nesting too deep to parse.
    """
    target = path.resolve()
    if within is not None and path.is_symlink() and not _link_allowed(target, within.resolve()):
        raise BadInput(f"{path} is a link to {target}, outside the folder", "copy the file here")
    if not target.is_file():
        raise BadInput(f"{path} is not a regular file", "give the folder of a model")
    size = target.stat().st_size
    if size > MAX_BYTES:
        raise BadInput(f"{path} has {size:,} bytes; settings files have at most {MAX_BYTES:,}",
                       "check that this is the right file")  # fmt: skip
    try:
        value = json.loads(
            target.read_bytes().decode("utf-8-sig"),
            object_pairs_hook=_no_key_twice,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        what = str(error) or "nested too deep"
        raise BadInput(f"{path} is not valid JSON: {what}", "repair the file") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a {type(value).__name__}, not an object", "check the file")
    return value


def chat_template(folder: ModelFolder, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template's text, from its own file or from ``tokenizer_config.json``."""
    path = folder.path("chat_template.jinja")
    if path is not None and path.stat().st_size <= MAX_BYTES:
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _link_allowed(target: Path, folder: Path) -> bool:
    return target.is_relative_to(folder) or target.parent.name == "blobs"


def _may_be_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return mapping


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
