"""What becomes 4-bit, what must not, and the count of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_core.errors import CheckFailed
from qlora_core.models.loader import load_model
from qlora_core.models.quantization import (
    computes_linear,
    convertible,
    is_within,
    kept_paths,
    library_skips,
    quantization_config,
)
from qlora_core.models.quantization_report import Share, count_quantized
from qlora_core.models.skeleton import build_skeleton
from qlora_core.registry.detect import detect


def test_the_settings_are_those_of_the_qlora_paper() -> None:
    config = quantization_config(compute_dtype=torch.bfloat16)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert config.llm_int8_skip_modules is None  # transformers' own list then applies


@pytest.mark.parametrize("name", ["gpt_neox", "falcon", "mixtral", "gemma3"])
def test_the_skip_list_is_the_union_of_the_family_and_of_transformers(name: str) -> None:
    detection = detect(tiny.family(name).example)
    skeleton = build_skeleton(detection.config)
    skipped = set(quantization_config(detection, compute_dtype=torch.float32).llm_int8_skip_modules)
    targets = detection.architecture.targets
    assert {*detection.architecture.layout.head, *targets.keep_unquantized} <= skipped
    assert set(get_keys_to_not_convert(skeleton)) <= skipped
    from_model = quantization_config(skeleton, compute_dtype=torch.float32)
    assert set(from_model.llm_int8_skip_modules) == skipped


def test_a_float32_parameter_that_a_class_names_protects_its_module() -> None:
    skeleton = build_skeleton(tiny.family("llama").example)
    skeleton._keep_in_fp32_modules = ["classifier.weight"]
    assert "classifier" in library_skips(skeleton)


def test_a_head_called_output_does_not_keep_layers_of_that_name_in_16_bits() -> None:
    skeleton = build_skeleton(tiny.family("git").example)
    kept = kept_paths(skeleton, library_skips(skeleton))
    assert "output" in kept
    assert not [path for path in kept if path.endswith("attention.output.dense")]


def test_a_weight_that_code_reads_is_4_bit_and_comes_dequantized(tmp_path: Path) -> None:
    loaded = load_model(tiny.save("mamba2", tmp_path), compute_dtype=torch.float32, device="cpu")
    layer = loaded.model.backbone.layers[0].mixer.out_proj
    assert layer.parametrizations.weight.original.dtype == torch.uint8
    assert (tuple(layer.weight.shape), layer.weight.dtype) == ((64, 128), torch.float32)
    assert not convertible(layer)
    assert "kept by the family" not in loaded.quantization.unquantized


def test_a_name_is_compared_by_whole_components() -> None:
    assert is_within("model.layers.1.mlp.gate", ["mlp.gate"])
    assert is_within("model.layers.1.indexer.wq", ["indexer"])
    assert not is_within("model.layers.1.mlp.gate_proj", ["mlp.gate"])
    assert not is_within("model.layers.11.mlp", ["layers.1"])


class Renamed(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.T + self.bias


class Doubled(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden)


class Pair(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, int]:  # type: ignore[override]
        return super().forward(hidden), 0


class Needy(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.groups = 2

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.reshape(self.groups, -1, 8))


@pytest.mark.parametrize(("kind", "linear"), [
    (nn.Linear, True), (Renamed, True), (Doubled, False), (Pair, False), (Needy, False),
])  # fmt: skip
def test_a_subclass_is_asked_whether_it_computes_a_linear_map(
    kind: type[nn.Linear], linear: bool
) -> None:
    assert computes_linear(kind) is linear


def test_conv1d_is_convertible_and_an_embedding_is_not() -> None:
    assert convertible(Conv1D(4, 8))
    assert not convertible(nn.Embedding(4, 8))


def test_asking_a_subclass_leaves_the_random_state_alone() -> None:
    class Fresh(Renamed):
        pass

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    computes_linear(Fresh)
    assert torch.equal(torch.rand(1), expected)


def test_bits_per_weight_are_those_of_the_paper(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path, hidden_size=256, intermediate_size=512)
    for double, bits in ((True, 4.127), (False, 4.5)):
        report = load_model(folder, device="cpu", double_quantization=double).quantization
        measured = 8 * report.quantized.bytes / report.quantized.weights
        assert measured == pytest.approx(bits, abs=0.006)


def test_every_weight_is_counted_once_and_has_a_reason() -> None:
    model = tiny.build("gpt2")  # its head is tied to its embeddings
    report = count_quantized(model, tiny.family("gpt2"))
    assert report.total.weights == sum(p.numel() for p in model.parameters())
    assert report.method is None
    assert report.quantized == Share()
    assert report.unquantized["embeddings"].tensors == 2


def test_a_linear_layer_left_in_16_bits_unasked_is_named() -> None:
    model = tiny.build("llama")
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    report = count_quantized(model, tiny.family("llama"))
    assert len(report.missed) == 14
    half = type(report)(**{**report.__dict__, "method": "nf4"})
    with pytest.raises(CheckFailed, match=r"14 linear layers.*layers\.0\.self_attn\.q_proj"):
        half.require_complete()
