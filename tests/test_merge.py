"""The merged model computes what base and adapter compute, and is a plain 16-bit model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.errors import BadInput
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.models.merge import merge
from qlora_core.models.shards import INDEX
from qlora_core.models.trained import base_hash
from qlora_core.registry.detect import installed

CORPUS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(1))


def save_base(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "1GB",
    **changes: Any,
) -> Path:
    """A base of that family, with weights large enough that NF4 moves its loss."""
    example = {**installed().architectures[family].example, **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**example)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def train_adapter(base: Path, folder: Path, *, quantize: str | None = "nf4", **lora: Any) -> Path:
    """A few steps of plain gradient descent; returns the folder of a run."""
    model = load_model(base, quantize=quantize, device="cpu").model
    torch.manual_seed(0)
    wrapped = attach(model, rank=4, **lora)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(4):
        wrapped(input_ids=CORPUS, labels=CORPUS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(folder / "adapter")
    settings = {"model": str(base), "quantize": quantize or "none", "double_quantization": True}
    record = {"settings": settings, "identity": {"base_hash": base_hash(base)}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a Llama-shaped base with tied embeddings in two shards."""
    folder = tmp_path_factory.mktemp("run")
    base = save_base(folder / "base", "llama", tie_word_embeddings=True, shard="120KB")
    return train_adapter(base, folder / "out")


@pytest.fixture(scope="module")
def merged(run: Path) -> tuple[Path, Any]:
    return run.parent / "merged", merge(run, run.parent / "merged", device="cpu")


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def relative(one: float, other: float) -> float:
    return abs(one / other - 1)


def test_the_merged_loss_is_the_unmerged_one(merged: tuple[Path, Any]) -> None:
    loss = merged[1].loss
    assert relative(loss["merged"], loss["trained"]) < 1e-3


def test_the_original_base_is_measured_and_lies_further_off(merged: tuple[Path, Any]) -> None:
    apart = merged[1].logits_difference
    assert apart["original"] > 5 * apart["merged"] > 0


def test_it_is_merged_shard_by_shard(run: Path, merged: tuple[Path, Any]) -> None:
    folder, report = merged
    assert report.method == "shard by shard"
    base = json.loads((run.parent / "base" / INDEX).read_text())["weight_map"]
    assert json.loads((folder / INDEX).read_text())["weight_map"] == base
    assert len(report.files) == len(set(base.values())) > 1


def test_plain_transformers_reads_it_with_the_bases_names_and_dtype(
    run: Path, merged: tuple[Path, Any]
) -> None:
    for file in sorted((run.parent / "base").glob("*.safetensors")):
        before, after = load_file(file), load_file(merged[0] / file.name)
        assert {k: (v.dtype, v.shape) for k, v in before.items()} == {
            k: (v.dtype, v.shape) for k, v in after.items()
        }
    model, found = AutoModelForCausalLM.from_pretrained(merged[0], output_loading_info=True)
    assert not any(found.values())
    assert "quantization_config" not in model.config.to_dict()


def test_tied_embeddings_stay_tied_and_untouched(run: Path, merged: tuple[Path, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged[0])
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, base.lm_head.weight)


def test_onto_the_original_base_it_is_what_plain_peft_merges(run: Path, tmp_path: Path) -> None:
    report = merge(run, tmp_path / "out", onto="original", device="cpu")
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(run.parent / "base", dtype=torch.float32),
        run / "adapter",
    ).merge_and_unload()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1 / 128, atol=1e-5)
    assert report.onto == "original"
    assert relative(report.loss["merged"], report.loss["original"]) < 1e-3


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("gpt2", {}),  # Conv1D: the checkpoint keeps weights transposed
        ("falcon", {}),  # a subclass of nn.Linear
        ("gpt_neox", {"rslora": True}),
        ("mistral", {"dora": True}),
        ("mixtral", {"targets": "all"}),  # in parts, other names
        ("mixtral", {"targets": "all,experts", "quantize": None}),
    ],
)
def test_every_kind_of_layer_merges(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", family)
    report = merge(train_adapter(base, tmp_path / "run", **lora), tmp_path / "merged", device="cpu")
    assert relative(report.loss["merged"], report.loss["trained"]) < 1e-3
    assert report.method.startswith("in memory") == (family == "mixtral")
    assert names(tmp_path / "merged") == names(base)


def names(folder: Path) -> set[tuple[str, str]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {(name, file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118


def test_an_adapter_of_a_16_bit_base_merges_onto_that(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt2", dtype=torch.float16)
    run = train_adapter(base, tmp_path / "run", quantize=None)
    report = merge(run, tmp_path / "merged", device="cpu")
    assert (report.onto, report.dtype) == ("original", "float16")
    assert relative(report.loss["merged"], report.loss["trained"]) < 1e-3


def test_a_4_bit_checkpoint_becomes_16_bit(run: Path, tmp_path: Path) -> None:
    model = load_model(run.parent / "base", device="cpu").model
    model.save_pretrained(tmp_path / "base4")
    alone = copy(run / "adapter", tmp_path / "alone")  # no run.json, so no hash
    report = merge(alone, tmp_path / "merged", base=tmp_path / "base4", device="cpu")
    assert relative(report.loss["merged"], report.loss["trained"]) < 1e-3
    assert {kind for _, kind in names(tmp_path / "merged")} <= {"BF16", "F16", "F32"}
    with pytest.raises(BadInput, match="no 16-bit original"):
        merge(alone, tmp_path / "x", base=tmp_path / "base4", onto="original")


def test_another_base_of_the_same_shape_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.parent / "base", other)
    file = sorted(other.glob("*.safetensors"))[0]
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="its weights differ"):
        merge(run, tmp_path / "merged", base=other, device="cpu")
    assert not (tmp_path / "merged").exists()


def test_a_base_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", "llama", intermediate_size=192)
    alone = copy(run / "adapter", tmp_path / "alone")  # no run.json, so no hash
    with pytest.raises(BadInput, match=r"does not fit .*other: size mismatch"):
        merge(alone, tmp_path / "merged", base=other, device="cpu")


@pytest.mark.parametrize("damage", ["nan", "missing", "renamed"])
def test_a_damaged_adapter_is_refused(run: Path, tmp_path: Path, damage: str) -> None:
    broken = copy(run, tmp_path / "run")
    file = broken / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if damage == "nan":
        tensors[name][0, 0] = float("nan")
    else:
        value = tensors.pop(name)
        if damage == "renamed":
            tensors[name.replace("layers.0", "layers.7")] = value
    save_file(tensors, file)
    expected = {"nan": "NaN or infinity", "missing": "lacks 1", "renamed": "lacks 1"}[damage]
    with pytest.raises(BadInput, match=expected):
        merge(broken, tmp_path / "merged", device="cpu")


def test_an_existing_folder_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BadInput, match="exists"):
        merge(run, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"r": 10**12}, "is not a rank from 1"), ({"peft_type": "IA3"}, "no LoRA adapter")],
)
def test_an_absurd_adapter_config_is_refused(
    run: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    broken = copy(run, tmp_path / "run")
    path = broken / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=expected):
        merge(broken, tmp_path / "merged")


def test_a_folder_without_adapter_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="and no adapter/ that does"):
        merge(tmp_path, tmp_path / "out")
