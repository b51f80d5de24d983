"""One model without adapter: the trained difference added to the base, shard by shard."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch

from qlora_core.errors import BadInput, CheckFailed
from qlora_core.facts.architecture import Architecture
from qlora_core.models.checkpoint import is_quantized_folder, require_whole_weights
from qlora_core.models.companions import copy_companions, tokenizer_for
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.merged_weights import changes
from qlora_core.models.output import new_folder
from qlora_core.models.probes import Reading, compute_in_float32, probe_ids, read_probes
from qlora_core.models.remote_code import Trust
from qlora_core.models.shards import (
    Placement,
    float_dtype,
    place,
    write_in_memory,
    write_json,
    write_shards,
)  # fmt: skip
from qlora_core.models.trained import (
    MERGED,
    TrainedAdapter,
    put_on,
    read_adapter,
    require_same_base,
)
from qlora_core.registry.manager import Registry

log = logging.getLogger("qlora-core")
TOLERANCE = 1e-3
"""How far the merged model's loss may be from the unmerged one's, relative."""
FLOAT32_UP_TO = 4_000_000_000
"""Models of so many weights are compared in float32, larger ones in the compute dtype."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was written, and how it compares with what was trained."""

    output: str
    onto: str
    """``nf4`` or ``fp4`` (the dequantized base that was trained on), or ``original``."""
    method: str
    """``shard by shard`` or ``in memory``, the latter with its reason."""
    files: tuple[str, ...]
    weights: int
    """Weights that differ from the original base, and of these"""
    adapted: int
    """those that carried an adapter."""
    dtype: str
    bytes: int
    loss: Mapping[str, float]
    """On the probe texts: ``trained`` (4-bit base and adapter), ``merged`` (read back from
    disk), ``original`` (16-bit base and adapter). Empty without the check."""
    logits_difference: Mapping[str, float]
    """``merged`` and ``original`` against ``trained``: root mean square, relative to the spread."""

    def lines(self) -> list[str]:
        """For the terminal."""
        size = f"{self.bytes / 2**20:,.1f} MiB in {len(self.files)} file(s), {self.dtype}"
        onto = "original" if self.onto == "original" else f"dequantized {self.onto}"
        lines = [
            f"merged onto the {onto} base, {self.method}: {self.output}",
            f"{size}; {self.weights} weights changed, {self.adapted} of them by the adapter",
        ]
        if self.loss:
            lines.append("on a few fixed texts, not yours, to tell whether they compute the same:")
        names = {"trained": "as trained", "merged": "merged", "original": "on the original base"}
        for key, loss in self.loss.items():
            apart = self.logits_difference.get(key)
            more = "" if apart is None else f"   logits {apart:.2%} apart from as trained"
            lines.append(f"  loss {names[key]:<22}{loss:.4f}{more}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def merge(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    onto: Literal["nf4", "original"] = "nf4",
    check: bool = True,
    texts: Sequence[str] | None = None,
    architecture: str | Architecture | None = None,
    device: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: Trust = False,
    registry: Registry | None = None,
) -> MergeReport:
    """Write the base with the adapter merged in to the new folder ``output``.

    ``onto="nf4"`` (the default) adds to the dequantized 4-bit base that was trained on (also
    when that was FP4), so that the merged model computes what was trained; ``"original"`` adds
    to the 16-bit base, which the adapter has never seen. Either way the other's loss is
    measured beside it. At most one shard is held in 16 bits, plus the base in 4 bits;
    ``check`` then loads whole models in 16 bits, one after the other, and compares their
    logits on ``texts``.

    Raises BadInput for an adapter or base that does not fit, is damaged or cannot be merged, and
    for an ``output`` that exists; CheckFailed, with nothing written, where the merged model's
    loss is more than 0.1 % from that of base and adapter.
    """
    if onto not in ("nf4", "original"):
        raise BadInput(f"cannot merge onto {onto!r}", "use nf4 or original")
    trained = read_adapter(adapter, base=base)
    how = {
        "architecture": architecture, "device": device, "revision": revision, "offline": offline,
        "trust_remote_code": trust_remote_code, "registry": registry,
    }  # fmt: skip
    job = _Job(trained, how, onto, texts)
    with new_folder(output) as aside:
        report = job.run(aside, Path(output), check=check)
        write_json(aside / MERGED, report.to_dict())
    return report


class _Job:
    """One merge: the settings that every model in it is loaded with."""

    def __init__(
        self,
        trained: TrainedAdapter,
        how: Mapping[str, Any],
        onto: str,
        texts: Sequence[str] | None,
    ) -> None:
        self.trained, self.how, self.texts = trained, how, texts
        self.onto = "original" if onto == "original" else trained.quantize or "original"

    def run(self, aside: Path, target: Path, *, check: bool) -> MergeReport:
        trained = self.trained
        loaded = load_model(
            trained.base,
            quantize=trained.quantize,
            double_quantization=trained.double_quantization,
            compute_dtype=trained.compute_dtype,
            **self.how,
        )
        require_same_base(trained, loaded.folder)
        pre_quantized = is_quantized_folder(loaded.folder)
        if pre_quantized and self.onto == "original":
            raise BadInput(
                f"{trained.base} is a 4-bit checkpoint: there is no 16-bit original to merge onto",
                "merge onto nf4, or name the original with --base",
            )
        wrapped = put_on(loaded.model, trained)
        rows = self._probes(loaded)
        placement = self._write(loaded, wrapped, aside)
        copy_companions(loaded, trained, aside, self.how)
        small = loaded.quantization.total.weights <= FLOAT32_UP_TO
        compute, folder = torch.float32 if small else loaded.compute_dtype, loaded.folder
        readings = {}
        if check:
            if small:
                compute_in_float32(wrapped)
            readings["trained"] = read_probes(wrapped, rows)
        del loaded, wrapped
        gc.collect()
        if check:
            readings["merged"] = self._read(aside, rows, compute)
            if not pre_quantized:
                readings["original"] = self._read(folder, rows, compute, with_adapter=True)
            self._compare(readings)
        return _report(self.onto, placement, target, aside, readings)

    def _write(self, loaded: LoadedModel, wrapped: peft.PeftModel, aside: Path) -> Placement:
        changed = changes(wrapped, dequantized=self.onto != "original")
        placement = place(changed, loaded)
        if not placement.reason:
            write_shards(placement, loaded, aside, original=self.onto == "original")
            return placement
        log.warning("the whole model is merged in memory: %s", placement.reason)
        if is_quantized_folder(loaded.folder):
            raise BadInput(
                f"{self.trained.base} is a 4-bit checkpoint, and {placement.reason}",
                "name the 16-bit original with --base",
            )
        dtype = float_dtype(loaded.folder)
        plain = load_model(loaded.folder, quantize=None, compute_dtype=dtype, **self.how).model
        write_in_memory(placement, plain, aside, original=self.onto == "original")
        return placement

    def _read(
        self, folder: Path, rows: list[list[int]], dtype: torch.dtype, *, with_adapter: bool = False
    ) -> Reading:
        model = load_model(folder, quantize=None, compute_dtype=dtype, **self.how).model
        reading = read_probes(put_on(model, self.trained) if with_adapter else model.eval(), rows)
        del model
        gc.collect()
        return reading

    def _compare(self, readings: Mapping[str, Reading]) -> None:
        expected = readings.get("original" if self.onto == "original" else "trained")
        merged, wanted = readings["merged"].loss, (expected or readings["trained"]).loss
        if not math.isfinite(merged) or abs(merged - wanted) > TOLERANCE * abs(wanted):
            raise CheckFailed(
                f"the merged model's loss is {merged:.5f} and should be {wanted:.5f} "
                f"({abs(merged / wanted - 1):.2%} apart): nothing was written",
                "serve the adapter unmerged, and report this with the model's name",
            )

    def _probes(self, loaded: LoadedModel) -> list[list[int]]:
        tokenizer = tokenizer_for(loaded, self.trained, self.how)
        table = getattr(loaded.model.get_input_embeddings(), "weight", None)
        if table is None:  # one table per codebook of a sound
            table = loaded.model.get_output_embeddings()[0].weight
        return probe_ids(tokenizer, table.shape[0], self.texts)


def _report(
    onto: str, placement: Placement, target: Path, aside: Path, readings: Mapping[str, Reading]
) -> MergeReport:
    files = require_whole_weights(aside)
    trained = readings.get("trained")
    reason = f"in memory ({placement.reason})" if placement.reason else "shard by shard"
    return MergeReport(
        output=str(target),
        onto=onto,
        method=reason,
        files=tuple(file.name for file in files),
        weights=len(placement.changes),
        adapted=sum(change.adapter is not None for change in placement.changes.values()),
        dtype=str(float_dtype(aside)).removeprefix("torch."),
        bytes=sum(file.stat().st_size for file in files),
        loss={name: reading.loss for name, reading in readings.items()},
        logits_difference={
            name: trained.difference(reading)
            for name, reading in readings.items()
            if trained is not None and name != "trained"
        },
    )
