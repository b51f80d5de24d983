"""A 4-bit model as a folder: quantized once, opened in seconds, by us and by transformers."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from qlora_core.data.tokenizer import has_tokenizer, load_tokenizer
from qlora_core.errors import BadInput, CheckFailed
from qlora_core.models.checkpoint import is_quantized_folder
from qlora_core.models.companions import copy_beside
from qlora_core.models.expert_loading import stored
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.output import new_folder
from qlora_core.models.probes import Reading, probe_ids, read_probes
from qlora_core.models.quantization_report import binary_size, parameters_once, quant_state
from qlora_core.models.skeleton import build_skeleton


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What was written, and who can open it."""

    output: str
    bytes: int
    """Of the weight files."""
    quantization: str
    """What is 4-bit and what is not, in one line."""
    ours_only: tuple[str, ...]
    """4-bit weights that plain transformers would not recognise as such: expert stacks, and
    subclasses of ``nn.Linear``. Empty where it opens the folder as well."""

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [self.quantization, f"{binary_size(self.bytes)} in {self.output}"]
        if self.ours_only:
            weights = f"{len(self.ours_only)} weights such as {self.ours_only[0]}"
            lines.append(f"opens in qlora-core only: transformers knows {weights} in 16 bits alone")
        else:
            lines.append("opens in qlora-core and in plain transformers")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    quant_type: str = "nf4",
    double_quantization: bool = True,
    check: bool = True,
    **how: Any,
) -> StoreReport:
    """Write ``model`` in 4 bits to the new folder ``output``, in transformers' own format.

    ``how`` are further arguments of ``load_model``. With ``check`` the folder is opened again
    and must give the same logits on a few fixed texts.

    Raises BadInput where ``output`` exists and where the model is 4-bit already, and
    CheckFailed, with nothing left, where the folder does not give the same model back.
    """
    with new_folder(output) as aside:
        loaded = load_model(
            model, quantize=quant_type, double_quantization=double_quantization, **how
        )
        _require_storable(loaded)
        rows = _rows(loaded, how) if check else []
        before = read_probes(loaded.model.eval(), rows)
        stacks = _stacks(loaded.model)
        _write(loaded.model, stacks, aside)
        copy_beside(loaded.folder, aside)
        report = StoreReport(
            output=str(output),
            bytes=sum(file.stat().st_size for file in aside.glob("*.safetensors")),
            quantization=loaded.quantization.summary(),
            ours_only=(*stacks, *_ours_only(loaded)),
        )
        del loaded
        gc.collect()
        if check:
            _require_same(before, aside, rows, how)
    return report


def _require_storable(loaded: LoadedModel) -> None:
    if is_quantized_folder(loaded.folder):
        raise BadInput(f"{loaded.detection.model} is 4-bit already", "use it as it is, or copy it")


def _stacks(model: nn.Module) -> dict[str, tuple[Tensor, QuantState]]:
    """Name -> packed bytes and state of each 4-bit parameter that is not of a linear layer."""
    found = {}
    for path, module, name, parameter in parameters_once(model):
        state = quant_state(module, name)
        if state is not None and not isinstance(module, Linear4bit):
            found[path.replace(".parametrizations", "")] = (parameter.data, state)
    return found


def _write(model: Any, stacks: Mapping[str, tuple[Tensor, QuantState]], to: Path) -> None:
    """As transformers writes a 4-bit model; stacks in the same manner, under their own names."""
    if not stacks:
        model.save_pretrained(to)
        return
    owners = tuple(f"{name}." for name in stacks)
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if not name.replace(".parametrizations", "").startswith(owners)
    }
    for name, (packed, state) in stacks.items():
        tensors |= stored(name, packed, state)
    model.hf_quantizer = _Written(model.config.quantization_config, tensors)
    model.save_pretrained(to, save_original_format=False)


class _Written(Bnb4BitHfQuantizer):  # type: ignore[misc]  # transformers ships no types
    """Lets ``save_pretrained`` write the tensors that it is given."""

    def __init__(self, settings: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(settings, pre_quantized=True)
        self.tensors = tensors

    def get_state_dict_and_metadata(self, *_: Any, **__: Any) -> tuple[dict[str, Tensor], Any]:
        """The tensors, and nothing to say of them."""
        return dict(self.tensors), {}


def _rows(loaded: LoadedModel, how: dict[str, Any]) -> list[list[int]]:
    tokenizer = None
    if has_tokenizer(loaded.folder):
        known = {key: how[key] for key in ("trust_remote_code", "registry") if key in how}
        architecture = loaded.detection.architecture
        tokenizer = load_tokenizer(loaded.folder, architecture, offline=True, **known)
    return probe_ids(tokenizer, loaded.model.get_input_embeddings().weight.shape[0])


def _ours_only(loaded: LoadedModel) -> tuple[str, ...]:
    """4-bit layers that are of another class than those that transformers converts."""
    skeleton = build_skeleton(loaded.detection.config)
    usual: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
    quantized = (path for path, m in loaded.model.named_modules() if isinstance(m, Linear4bit))
    return tuple(path for path in quantized if type(skeleton.get_submodule(path)) not in usual)


def _require_same(
    before: Reading, folder: Path, rows: list[list[int]], how: dict[str, Any]
) -> None:
    after = read_probes(load_model(folder, **how).model.eval(), rows)
    same = all(torch.equal(*pair) for pair in zip(before.logits, after.logits, strict=True))
    if not same:
        raise CheckFailed(
            f"opened again, the folder gives other logits ({before.difference(after):.2%} apart): "
            "nothing was written",
            "train from the 16-bit folder, and report this with the model's name",
        )
