"""A trained adapter on disk: which base it belongs to, whether it is sound, and putting it on."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError

from qlora_core.data.tokenizer import has_tokenizer, load_tokenizer
from qlora_core.errors import BadInput, first_line
from qlora_core.facts.architecture import Architecture
from qlora_core.models.adapter_config import check_adapter_config
from qlora_core.models.devices import parse_dtype
from qlora_core.models.loader import load_model
from qlora_core.models.peft_keys import load_tensors
from qlora_core.models.peft_names import as_asked, as_modules, fill
from qlora_core.models.remote_code import Trust
from qlora_core.registry.files import read_json
from qlora_core.registry.manager import Registry

log = logging.getLogger("qlora-core")
CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "run.json"
MERGED = "merge.json"
"""What ``merge`` leaves beside the weights: how they were made."""


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """An adapter's folder and what is known of its training."""

    folder: Path
    base: str
    """The base model: a folder or a Hub id."""
    config: Mapping[str, Any]
    """``adapter_config.json``."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """``run.json`` of the run that made it; empty for an adapter from elsewhere."""

    @property
    def quantize(self) -> str | None:
        """The 4-bit type of the base it was trained on, None for 16 bits; nf4 where unrecorded."""
        recorded = self.settings.get("quantize", "nf4")
        return None if recorded in (None, "none") else str(recorded)

    @property
    def double_quantization(self) -> bool:
        """Whether the block scales were quantized too; true where unrecorded."""
        return bool(self.settings.get("double_quantization", True))

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype it was trained in: the 4-bit weights were made from values rounded to it."""
        recorded = self.record.get("hardware", {}).get("compute_dtype")
        return parse_dtype(str(recorded).removeprefix("torch.")) if recorded else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run's settings, as far as they are recorded."""
        found = self.record.get("settings")
        return found if isinstance(found, Mapping) else {}


def read_adapter(path: str | Path, *, base: str | Path | None = None) -> TrainedAdapter:
    """The adapter at ``path``: its folder, or the folder of a run that holds ``adapter/``.

    ``base`` wins over what run and adapter recorded. Nothing is fetched.
    Raises BadInput for a folder without adapter, and for files that cannot be used.
    """
    folder = Path(path)
    if not folder.exists():
        raise BadInput(f"there is no folder {path}", "name the folder of a run or of an adapter")
    if not (folder / CONFIG).is_file():
        folder = folder / "adapter"
    if not (folder / CONFIG).is_file():
        raise BadInput(
            f"{path} holds no {CONFIG}, and no adapter/ that does",
            "give the folder of a run or of an adapter in PEFT's format",
        )
    if not (folder / WEIGHTS).is_file():
        raise BadInput(
            f"{folder} has no {WEIGHTS}", "save the adapter as safetensors; .bin is not opened"
        )
    config = read_json(folder / CONFIG)
    check_adapter_config(config, folder / CONFIG)
    record = read_json(folder.parent / RECORD) if (folder.parent / RECORD).is_file() else {}
    settings = record.get("settings")
    recorded = settings.get("model") if isinstance(settings, Mapping) else None
    found = base or recorded or config.get("base_model_name_or_path")
    if not found:
        raise BadInput(f"{folder} does not say which base it was trained on", "name it: --base")
    if base is None:
        _require_at_hand(str(found), folder)
    return TrainedAdapter(folder=folder, base=str(found), config=config, record=record)


def _require_at_hand(base: str, folder: Path) -> None:
    """A file of the adapter names ``base``: that is no request to download it."""
    if Path(base).exists():
        return
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(base, "config.json")
    except errors.HFValidationError:
        cached = None
    if not isinstance(cached, str):
        raise BadInput(
            f"{folder} was trained on {base[:200]!r}: no folder is called so from here, and the "
            "Hub's cache does not hold it",
            "name the base yourself, with --model (merge: --base): a folder, or an id that may "
            "then be downloaded",
        )


def put_on(model: Any, adapter: TrainedAdapter) -> peft.PeftModel:
    """``model`` with the adapter, in float32, frozen and in evaluation mode.

    Raises BadInput where names or shapes do not fit the model, tensors are missing or left
    over (PEFT leaves those at their start values), and where weights are not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*missing adapter keys")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            config = as_modules(peft.LoraConfig.from_pretrained(str(adapter.folder)), model)
            with as_asked(model):
                wrapped = peft.PeftModel.from_pretrained(
                    model, str(adapter.folder), config=config, local_files_only=True
                )
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        first = next((line for line in str(error).splitlines() if "size mismatch" in line), None)
        raise BadInput(
            f"the adapter in {adapter.folder} does not fit {adapter.base}: "
            f"{(first or first_line(error)).strip()}",
            "name the base that it was trained on",
        ) from None
    _fill(wrapped, adapter)
    broken = [
        name
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name and not torch.isfinite(parameter).all()
    ]
    if broken:
        raise BadInput(
            f"{len(broken)} tensors of {adapter.folder} hold NaN or infinity, first {broken[0]}",
            "take an earlier checkpoint; training broke down before this one was saved",
        )
    return wrapped.eval()


def base_hash(folder: Path) -> str:
    """SHA-256 over names and contents of all that makes the base model: weights, config, code.

    Every byte, as an edited layer may hide between samples. It costs little beside loading:
    about 1.7 GB/s on one core, and files are read at once on several.
    """
    weights, code = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.py"))
    files = [path for path in (*weights, folder / "config.json", *code) if path.is_file()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(_sha256, files))
    lines = (f"{path.name}:{digest}\n" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same_base(adapter: TrainedAdapter, folder: Path) -> None:
    """Raise BadInput where the run recorded the hash of another base."""
    recorded = adapter.record.get("identity", {}).get("base_hash")
    if recorded and recorded != base_hash(folder):
        raise BadInput(
            f"{folder} is not the base that the adapter was trained on: its weights differ",
            f"the run recorded {adapter.settings.get('model') or adapter.base}; "
            "take the same revision of it",
        )


def _fill(wrapped: peft.PeftModel, adapter: TrainedAdapter) -> None:
    """Take every saved value by its own name, whatever PEFT made of the names."""
    saved = load_tensors(adapter.folder / WEIGHTS)
    expected = set(peft.get_peft_model_state_dict(wrapped))
    for what, names in (("lacks", expected - set(saved)), ("holds also", set(saved) - expected)):
        if names:
            raise BadInput(
                f"{adapter.folder / WEIGHTS} {what} {len(names)} tensors: "
                f"{', '.join(sorted(names)[:3])}: not all of it would be used",
                "name the base that it was trained on, in the class it was trained in",
            )
    fill(wrapped, saved)


def load_for_use(
    model: str | Path | None,
    *,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    device: str | None = None,
    architecture: str | Architecture | None = None,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
    registry: Registry | None = None,
) -> tuple[Any, Any, Architecture]:
    """Model with adapter, tokenizer and family, to ask rather than to train.

    ``model`` None takes the base that the adapter names; ``quantize`` None the data type that it
    was trained on, as it would compute something else on another (``none`` means 16 bits). A
    merged model stays in 16 bits: quantized again it would lose part of what it learned.
    The tokenizer is the adapter's where it has one.
    Raises BadInput for a model without tokenizer, and as ``load_model`` and ``put_on`` do.
    """
    trained = None if adapter is None else read_adapter(adapter, base=model)
    if quantize is None:
        merged = model is not None and (Path(model) / MERGED).is_file()
        untrained = None if merged else "nf4"
        quantize = untrained if trained is None else trained.quantize
    elif trained and trained.record and quantize != (trained.quantize or "none"):
        log.warning(
            "the adapter was trained on a %s base, and a %s base computes something else",
            trained.quantize or "16-bit", "16-bit" if quantize == "none" else quantize,
        )  # fmt: skip
    loaded = load_model(
        trained.base if trained else str(model),
        quantize=None if quantize == "none" else quantize,
        double_quantization=trained.double_quantization if trained else True,
        device=device,
        architecture=architecture,
        revision=revision,
        offline=offline,
        trust_remote_code=trust_remote_code,
        registry=registry,
    )
    if trained:
        require_same_base(trained, loaded.folder)
    family = loaded.detection.architecture
    own = trained is not None and has_tokenizer(trained.folder)
    tokenizer = load_tokenizer(
        trained.folder if trained and own else loaded.folder,
        family,
        offline=True,
        trust_remote_code=trust_remote_code,
        registry=registry,
    )
    wrapped = put_on(loaded.model, trained) if trained else loaded.model.eval()
    return wrapped, tokenizer, family
