"""Memory: said before, measured, and explained when it runs out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from qlora_core import detect
from qlora_core.cli.main import main
from qlora_core.errors import is_out_of_memory
from qlora_core.models import memory
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.models.memory import plan_memory
from qlora_core.models.memory_plan import (
    ACTIVATIONS,
    ADAPTERS,
    CONTEXT,
    FOUR_BIT,
    HEAD,
    LAYER,
    OPTIMIZER,
    REST,
    MemoryPlan,
)
from qlora_core.models.peak_memory import (
    explain_out_of_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from qlora_core.models.step_memory import PLAIN, Way, fast_way

LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
STEP = """
import json, sys
import torch
from qlora_core.models.adapters import attach
from qlora_core.models.loader import load_model
from qlora_core.models.peak_memory import peak_memory_bytes, reset_peak_memory
folder, tokens, checkpointing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
loaded = load_model(folder, device="cpu", compute_dtype=torch.bfloat16)
model = attach(loaded.model, gradient_checkpointing=checkpointing).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
reset_peak_memory(loaded.device)
batch = torch.randint(0, 8192, (1, tokens))
for _ in range(2):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[0, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(peak_memory_bytes(loaded.device))
"""


def test_an_8b_models_terms_are_those_of_its_published_sizes() -> None:
    plan = plan_memory(LLAMA_8B, tokens=2048, optimizer="adamw_8bit", way=PLAIN)
    assert plan.terms[FOUR_BIT] == pytest.approx(32 * 112.529e6, rel=1e-3)  # a published count
    assert plan.terms[REST] == pytest.approx(2.10e9, rel=0.01)
    assert plan.terms[ADAPTERS] == 41_943_040 * 4
    assert plan.terms[OPTIMIZER] == 41_943_040 * (4 + 2)
    assert plan.terms[ACTIVATIONS] == 32 * 2048 * 4096 * 2
    assert plan.terms[HEAD] == 14 * 2048 * 128256
    assert plan.total == pytest.approx(10.1 * 2**30, rel=0.06)  # an independent trace's figure


def test_the_plan_counts_the_weights_that_loading_then_finds(tmp_path: Path) -> None:
    for family in ("falcon", "mixtral", "gpt2"):
        loaded = load_model(tiny.save(family, tmp_path / family), device="cpu")
        plan = plan_memory(loaded.detection, compute_dtype=loaded.compute_dtype)
        report = loaded.quantization
        wide = 2 if loaded.compute_dtype == torch.bfloat16 else 4
        assert plan.terms[REST] == wide * (report.total.weights - report.quantized.weights)
        packed = report.quantized.weights * memory.BYTES_PER_4_BIT_WEIGHT[True]
        assert plan.terms[FOUR_BIT] == round(packed)
        adapted = attach(loaded.model)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert plan.terms[ADAPTERS] == 4 * trainable


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are reset on Linux only")
@pytest.mark.parametrize(
    ("shape", "tokens", "checkpointing"),
    [
        ({"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}, 512, False),
        ({"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2}, 512, True),
    ],
)
def test_the_plan_is_within_a_fifth_of_the_measured_peak(
    shape: dict[str, int], tokens: int, checkpointing: bool, tmp_path: Path
) -> None:
    values = {**shape, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192}
    folder = tiny.save("llama", tmp_path, **values)
    plan = plan_memory(
        detect(folder), tokens=tokens, lengths=1, optimizer="adamw", device="cpu",
        gradient_checkpointing=checkpointing, way=PLAIN,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(folder), str(tokens), str(checkpointing)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert int(done.stdout) == pytest.approx(plan.total, rel=0.2)


def test_each_choice_moves_its_own_term() -> None:
    small = {**LLAMA_8B, "num_hidden_layers": 2}

    def terms(**choice: Any) -> dict[str, int]:
        return dict(plan_memory(small, **{"way": PLAIN, **choice}).terms)

    usual = terms()
    assert terms(rank=32)[ADAPTERS] == 2 * usual[ADAPTERS]
    assert terms(optimizer="adamw_8bit")[OPTIMIZER] == usual[OPTIMIZER] / 2
    assert terms(tokens=4096)[HEAD] == 2 * usual[HEAD]
    assert terms(learned=0.5)[HEAD] < 0.6 * usual[HEAD]
    assert terms(quantize=None)[FOUR_BIT] == 0
    assert terms(double_quantization=False)[FOUR_BIT] > usual[FOUR_BIT]
    assert terms(gradient_checkpointing=False)[ACTIVATIONS] > 10 * usual[ACTIVATIONS]
    assert terms(gradient_checkpointing=False)[LAYER] < usual[LAYER]
    assert terms(targets="attention")[ADAPTERS] < usual[ADAPTERS]


def test_without_full_logits_the_head_takes_a_tile_whatever_the_vocabulary() -> None:
    def head(vocabulary: int, way: Way) -> int:
        config = {**LLAMA_8B, "num_hidden_layers": 1, "vocab_size": vocabulary}
        return plan_memory(config, way=way).terms[HEAD]

    alone = fast_way("cuda")
    assert head(64_000, alone) == pytest.approx(head(32_000, alone), rel=0.01)
    assert head(256_000, alone) < 2 * head(32_000, alone)  # a tile has ``LEAST_ROWS`` rows
    assert head(256_000, PLAIN) == 8 * head(32_000, PLAIN) > 20 * head(256_000, alone)


def test_the_fast_road_is_supposed_where_the_structure_allows_it() -> None:
    def road(family: str, device: str) -> str:
        return plan_memory(tiny.family(family).example, device=device).road

    assert "packed samples, 2 of 2 layers by hand" in road("llama", "cpu")
    assert "packed samples, layers by their own code" in road("gpt_neox", "cpu")
    assert "label-only head, packed samples, layers by their own code" in road("llama", "cuda")
    assert "padded samples" in road("bloom", "cpu")  # its decoder takes no positions


def test_the_plan_says_what_it_comes_to_when_the_fast_road_is_refused() -> None:
    plan = plan_memory(LLAMA_8B, device="cpu")
    plain = plan_memory(LLAMA_8B, device="cpu", way=PLAIN)
    assert plan.if_refused == plain.total > plan.total
    assert plain.if_refused is None
    assert "where the model refuses that: up to" in plan.table()
    assert "the plain road" in plain.table()


def test_detect_plans_for_the_device_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.family("llama").example))
    command = ["detect", str(tmp_path), "--build", "--device"]
    assert main([*command, "cuda"]) == 0
    assert "label-only head, packed samples" in capsys.readouterr().out
    assert main([*command, "cpu"]) == 0
    assert "2 of 2 layers by hand" in capsys.readouterr().out
    assert main([*command, "abacus"]) == 2
    assert "'abacus'" in capsys.readouterr().err


def test_layers_that_a_probe_refused_count_as_their_own_code() -> None:
    def kept(*refused: str) -> int:
        way = dataclasses.replace(fast_way("cpu"), refused=frozenset(refused))
        return plan_memory(LLAMA_8B, way=way, gradient_checkpointing=False).terms[ACTIVATIONS]

    assert kept() < kept("layers.0") < kept("layers.0", "layers.7")


def test_on_cpus_kernels_for_many_lengths_are_part_of_the_plan() -> None:
    def buffers(**choice: Any) -> int:
        return plan_memory(LLAMA_8B, **{"device": "cpu", **choice}).terms[CONTEXT]

    few, many, endless = buffers(lengths=1), buffers(lengths=10), buffers()
    assert few < many < endless
    assert endless == buffers(lengths=100_000)
    wide = {"compute_dtype": torch.float32}
    assert buffers(lengths=1, **wide) == buffers(**wide)  # float32 products are not compiled
    assert buffers(lengths=1, device="cuda") == buffers(device="cuda")


def test_packed_rows_are_planned_without_their_padding() -> None:
    def kept(way: Way) -> int:
        plan = plan_memory(LLAMA_8B, tokens=4096, packed_tokens=1024, device="cpu", way=way)
        return plan.terms[ACTIVATIONS]

    assert kept(PLAIN) == pytest.approx(4 * kept(fast_way("cpu")), rel=0.03)  # ranks are kept, too


def test_experts_are_dequantized_one_at_a_time() -> None:
    example = tiny.family("mixtral").example

    def work(experts: int) -> int:
        config = {**example, "num_local_experts": experts}
        return plan_memory(config, tokens=1).terms[LAYER]

    assert work(4) == work(64)


def test_the_table_adds_up_to_its_peak() -> None:
    plan = MemoryPlan(
        terms={FOUR_BIT: 2**30, ACTIVATIONS: 2**29, LAYER: 3 * 2**20, HEAD: 2**30},
        gradient_checkpointing=True,
        tokens=1024,
    )
    assert plan.total == 2**30 + 2**29 + 2**30
    assert "(3.0 MiB)" in plan.table()
    assert plan.table().splitlines()[4].split() == ["peak", "2.5", "GiB"]
    assert json.loads(json.dumps(plan.to_dict()))["planned_total_bytes"] == plan.total


@pytest.mark.parametrize(
    ("terms", "checkpointing", "remedy"),
    [
        ({HEAD: 9}, True, "halve batch_size"),
        ({ACTIVATIONS: 9}, False, "switch on gradient_checkpointing"),
        ({ACTIVATIONS: 9}, True, "halve batch_size"),
        ({OPTIMIZER: 9}, True, "adamw_8bit"),
        ({FOUR_BIT: 30}, True, "too large for this device"),
    ],
)
def test_running_out_of_memory_names_the_term_and_the_next_setting(
    terms: dict[str, int], checkpointing: bool, remedy: str
) -> None:
    least = dict.fromkeys((FOUR_BIT, REST, ADAPTERS, OPTIMIZER, ACTIVATIONS, LAYER, HEAD), 2**30)
    plan = MemoryPlan(
        terms=least | {name: size * 2**30 for name, size in terms.items()},
        gradient_checkpointing=checkpointing,
        tokens=4096,
    )
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.91 GiB.\nmore")
    assert is_out_of_memory(error)
    explained = explain_out_of_memory(error, plan)
    assert remedy in explained.remedy
    assert "Tried to allocate 3.91 GiB." in explained.problem
    assert plan.table() in explained.problem


def test_what_ran_out_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_peak_is_remembered_and_can_be_reset() -> None:
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory_bytes(cpu)
    torch.ones(2**26)  # 256 MiB, freed at once
    assert peak_memory_bytes(cpu) >= before + 200 * 2**20


@pytest.mark.parametrize(("family", "times"), [("llama", 1), ("gpt_neox", 2), ("falcon", 2)])
def test_norms_of_torch_widen_what_follows_them_on_cuda(family: str, times: int) -> None:
    """CUDA's autocast lists layer_norm and rms_norm under float32, the CPU's does not."""

    def kept(**choice: Any) -> int:
        source = tiny.family(family).example
        plan = plan_memory(source, gradient_checkpointing=False, way=PLAIN, **choice)
        return plan.terms[ACTIVATIONS]

    assert kept(device="cuda") == pytest.approx(times * kept(device="cpu"), rel=1e-6)
    wide = torch.float32
    assert kept(device="cuda", compute_dtype=wide) == kept(device="cpu", compute_dtype=wide)
