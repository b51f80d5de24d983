"""Loading: all of the decoder in 4 bits, exactly, and nothing silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils.quantization_config import QuantizationMethod

from qlora_core import load
from qlora_core.errors import BadInput, CheckFailed
from qlora_core.kernels import nf4
from qlora_core.kernels.experts import ExpertStack
from qlora_core.models import checkpoint
from qlora_core.models.loader import LoadedModel, load_model
from qlora_core.models.quantization_report import Share

ENDS = ("embeddings", "head")
FAMILIES = ["llama", "falcon", "gpt2", "mixtral"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(family: str, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny.save(family, tmp_path_factory.mktemp(family))
    return load_model(folder, device="cpu", compute_dtype=torch.bfloat16)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.save("llama", tmp_path / "llama")


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    """4-bit weights by path, as the matrices or stacks they stand for."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found[f"{path}.weight"] = dequantize_4bit(module.weight.data, module.weight.quant_state)
        if isinstance(module, ExpertStack):
            found[path] = module.whole().frozen()
    return found


def test_the_logits_are_those_of_the_dequantized_weights(family: str, loaded: LoadedModel) -> None:
    reference = tiny.build(family)
    weights = dequantized(loaded.model)
    assert weights
    for path, weight in weights.items():
        owner = reference.get_submodule(path.rpartition(".")[0])
        with torch.no_grad():
            reference.get_parameter(path).copy_(weight.T if isinstance(owner, Conv1D) else weight)
    with torch.no_grad():
        expected = reference(input_ids=tiny.tokens()).logits.float()
        found = loaded.model(input_ids=tiny.tokens()).logits.float()
        original = tiny.build(family)(input_ids=tiny.tokens()).logits.float()
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 0.02 * scale  # bfloat16 keeps 8 bits
    assert (found - original).abs().max() > (found - expected).abs().max()


def test_every_linear_weight_of_the_decoder_is_4_bit(family: str, loaded: LoadedModel) -> None:
    report = loaded.quantization
    assert report.missed == ()
    assert set(report.unquantized) <= {
        "embeddings", "head", "norms and biases", "other parameters",
    }  # fmt: skip
    linear = sum(w.numel() for w in dequantized(loaded.model).values())
    assert report.quantized.weights == linear
    matrices = sum(p.numel() for p in tiny.build(family).parameters() if p.ndim > 1)
    ends = sum(report.unquantized[r].weights for r in report.unquantized if r in ENDS)
    routers = report.unquantized.get("other parameters", Share()).weights
    assert linear == matrices - ends - routers
    assert routers == (2 * 4 * 64 if family == "mixtral" else 0)


def test_falcons_own_linear_class_is_4_bit(tmp_path: Path) -> None:
    model = load_model(tiny.save("falcon", tmp_path), device="cpu").model
    layers = [m for path, m in model.named_modules() if "transformer.h." in path]
    assert sum(isinstance(m, Linear4bit) for m in layers) == 8  # four in each of two layers
    assert not any(type(m).__name__ == "FalconLinear" for m in layers)


def test_the_model_looks_like_any_bitsandbytes_model(loaded: LoadedModel) -> None:
    model = loaded.model
    assert model.is_loaded_in_4bit
    assert model.is_quantized
    assert model.quantization_method == QuantizationMethod.BITS_AND_BYTES
    settings = model.config.quantization_config.to_dict()
    assert settings["quant_method"] == QuantizationMethod.BITS_AND_BYTES
    assert settings["bnb_4bit_quant_type"] == "nf4"
    assert "expert_parameters" not in settings


def test_nothing_is_cast_to_float32_and_nothing_is_trainable(loaded: LoadedModel) -> None:
    floating = {p.dtype for p in loaded.model.parameters() if p.is_floating_point()}
    assert floating == {torch.bfloat16}
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_evaluation_does_not_repack_4_bit_weights(loaded: LoadedModel) -> None:
    before = {n: p.clone() for n, p in loaded.model.named_parameters()}
    with torch.no_grad():
        loaded.model.eval()(input_ids=tiny.tokens())
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.named_parameters())


def test_the_adapter_will_name_what_the_user_named(llama: Path) -> None:
    assert load_model(llama, device="cpu").model.config._name_or_path == str(llama)


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt2"])
def test_a_4_bit_folder_loads_as_it_is(name: str, tmp_path: Path) -> None:
    first = load_model(tiny.save(name, tmp_path / "16"), device="cpu", double_quantization=False)
    first.model.save_pretrained(tmp_path / "4")
    again = load_model(tmp_path / "4", device="cpu", compute_dtype=first.compute_dtype)
    assert again.quantization == first.quantization
    with torch.no_grad():
        logits = [m.model(input_ids=tiny.tokens()).logits for m in (first, again)]
    assert torch.equal(*logits)


def test_a_4_bit_folder_of_transformers_own_making_loads_too(llama: Path, tmp_path: Path) -> None:
    from qlora_core import quantization_config

    settings = quantization_config(compute_dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(
        llama, quantization_config=settings, dtype=torch.bfloat16
    )
    plain.save_pretrained(tmp_path / "4")
    ours = load_model(llama, device="cpu", compute_dtype=torch.bfloat16)
    again = load_model(tmp_path / "4", device="cpu", compute_dtype=torch.bfloat16)
    for path, weight in dequantized(ours.model).items():
        assert torch.equal(weight, dequantized(again.model)[path])
        assert torch.equal(weight, dequantized(plain)[path])


def test_4_bit_expert_stacks_refuse_to_be_saved_instead_of_being_lost(tmp_path: Path) -> None:
    loaded = load_model(tiny.save("mixtral", tmp_path / "16"), device="cpu")
    with pytest.raises(ValueError, match="not serializable"):
        loaded.model.save_pretrained(tmp_path / "4")


def test_a_4_bit_folder_is_not_taken_for_what_it_is_not(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "nf4"
    load_model(llama, device="cpu").model.save_pretrained(folder)
    with pytest.raises(BadInput, match=r"holds 4-bit weights.*16-bit ones are asked for"):
        load_model(folder, device="cpu", quantize=None)
    load_model(folder, device="cpu", quantize="fp4")
    assert "nf4 weights: they stay, and are not made fp4" in caplog.text


def test_16_bit_loading_quantizes_nothing(llama: Path) -> None:
    loaded = load_model(llama, device="cpu", quantize=None)
    assert loaded.quantization.method is None
    assert loaded.quantization.summary().startswith("not quantized")


def test_fp4_is_another_data_type(llama: Path) -> None:
    assert load_model(llama, device="cpu", quantize="fp4").quantization.method == "fp4"


def test_a_folder_without_a_tokenizer_gives_none_and_says_so(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load(llama, device="cpu")
    assert tokenizer is None
    assert model.is_loaded_in_4bit
    assert "has no tokenizer" in caplog.text


def test_a_prepare_hook_of_the_family_is_called_with_the_model(llama: Path) -> None:
    from dataclasses import replace

    seen: list[Any] = []
    own = replace(tiny.family("llama"), prepare_model=seen.append)
    assert seen == [load_model(llama, device="cpu", architecture=own).model]


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_missing_weights_are_refused_and_never_start_at_random(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadInput, match=r"no weights for 1 tensors.*layers\.1\.mlp\.up_proj"):
        load_model(llama, device="cpu")


def test_weights_of_another_shape_are_refused(llama: Path) -> None:
    tiny.edit_config(llama, vocab_size=512)
    with pytest.raises(BadInput, match=r"shape|cannot be loaded"):
        load_model(llama, device="cpu")


def test_weights_without_a_place_are_reported(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(llama, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(4)}))
    loaded = load_model(llama, device="cpu")
    assert loaded.unexpected == ("model.extra.weight",)
    assert "no place for" in caplog.text


def test_a_linear_layer_that_a_4_bit_folder_holds_in_16_bits_has_its_reason(
    llama: Path, tmp_path: Path
) -> None:
    from qlora_core import quantization_config

    settings = quantization_config(compute_dtype=torch.bfloat16)
    settings.llm_int8_skip_modules = ["lm_head", "o_proj"]
    AutoModelForCausalLM.from_pretrained(
        llama, quantization_config=settings, dtype=torch.bfloat16
    ).save_pretrained(tmp_path / "4")
    report = load_model(tmp_path / "4", device="cpu").quantization
    assert report.unquantized["kept by the checkpoint"].tensors == 2


def test_a_truncated_file_is_refused_before_loading(llama: Path) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cut or corrupt"):
        load_model(llama, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(llama: Path, content: bytes, message: str) -> None:
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_model(llama, device="cpu")


def test_a_missing_shard_is_refused_by_name(llama: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"lacks 1 of 2 .*model-00002-of-00002\.safetensors"):
        load_model(llama, device="cpu")


def test_an_index_may_not_name_files_elsewhere(llama: Path) -> None:
    index = {"weight_map": {"a": "../../other/model.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="names files beside it"):
        load_model(llama, device="cpu")


def test_pickled_weights_are_never_opened(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(BadInput, match="can run code when opened"):
        load_model(llama, device="cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors"])
def test_another_methods_checkpoint_is_refused_by_name(llama: Path, method: str) -> None:
    tiny.edit_config(llama, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(BadInput, match=f"already quantized by {method}") as caught:
        load_model(llama, device="cpu")
    assert "16-bit original" in caught.value.remedy


def test_an_8_bit_checkpoint_is_refused(llama: Path) -> None:
    tiny.edit_config(
        llama, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    with pytest.raises(BadInput, match="bitsandbytes 8-bit"):
        load_model(llama, device="cpu")


@pytest.mark.parametrize("choice", [{"quantize": "int3"}, {"attn_implementation": "owner/kernel"}])
def test_impossible_choices_are_refused(llama: Path, choice: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        load_model(llama, device="cpu", **choice)  # type: ignore[arg-type]


def test_a_model_that_brings_code_does_not_run_it(llama: Path) -> None:
    (llama / "evil.py").write_text("raise SystemExit('ran')")
    tiny.edit_config(llama, model_type="unheard_of", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(BadInput):
        load_model(llama, device="cpu", architecture="llama")


def test_too_little_room_is_said_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="GiB left"):
        checkpoint.require_room("owner/model", 2**60, tmp_path / "not" / "there" / "yet")
    checkpoint.require_room("owner/model", 0, tmp_path)
    assert shutil.disk_usage(tmp_path).free > 0


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_memory_that_runs_out_while_quantizing_is_not_told_as_damaged_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers keeps what a conversion raises, and speaks of files in the end."""
    folder = tiny.save(name, tmp_path)
    tried = []

    def full(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(nf4, "quantize", full)
    monkeypatch.setattr(nf4, "quantize_parts", full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        load_model(folder, device="cpu", compute_dtype=torch.bfloat16)
    assert len(tried) == 1


def test_left_out_layers_stop_the_load(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what a release of transformers may do again: convert fewer modules than there are
    from qlora_core.models import quantizer

    real = quantizer.replace_with_bnb_linear

    def forgetful(model: Any, modules_to_not_convert: list[str], **rest: Any) -> Any:
        return real(model, modules_to_not_convert=[*modules_to_not_convert, ".*down_proj"], **rest)

    monkeypatch.setattr(quantizer, "replace_with_bnb_linear", forgetful)
    with pytest.raises(CheckFailed, match=r"2 linear layers.*down_proj"):
        load_model(llama, device="cpu")


def test_loading_leaves_no_progress_bar_in_a_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.save("llama", tmp_path)
    capfd.readouterr()
    load_model(tmp_path, device="cpu")
    assert capfd.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()
