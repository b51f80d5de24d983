"""The benchmarks at toy size: everyone trains on the same tokens, and figures are what they say."""

from __future__ import annotations

import io
import json
import math
import random
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="TRL is one of the contestants")

from benchmarks import bars, batches, convergence, elsewhere, limit, loading, plot, slopes, speed
from benchmarks.contestants import ALL, contestants, trl_step
from benchmarks.field import Field
from benchmarks.measuring import Seen, measure
from benchmarks.models import SHAPES, config_of, make_model, write_checkpoint
from benchmarks.svg import Axis
from qlora_core.data.collate import collator
from qlora_core.training.losses import IGNORED, learned_tokens

CPU = torch.device("cpu")
VOCABULARY = 512


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Field:
    folder = tmp_path_factory.mktemp(request.param)
    return Field(make_model(folder, config_of("toy", VOCABULARY, request.param), CPU), CPU)


def toy_batch() -> dict[str, torch.Tensor]:
    drawn = random.Random(1)
    samples = [batches.made_sample(length, VOCABULARY, drawn) for length in (40, 17)]
    made: dict[str, torch.Tensor] = collator(_Padding())(samples)
    return made


class _Padding:
    pad_token_id = eos_token_id = 0


def test_every_contestant_takes_a_step(place: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [name for name in ALL if name not in ("ours", "ours, recomputing")]  # not compiled
    runs = contestants(place, wanted)
    assert set(wanted) - set(runs) == set(wanted) & set(place.absent)
    by_hand = {"ours eager", "ours eager, recomputing"}  # what only a family with such layers has
    assert set(wanted) - set(runs) == (set() if "llama" in str(place.folder) else by_hand)
    losses: list[float] = []
    plain = torch.autograd.backward

    def noted(loss: torch.Tensor, *given: Any, **named: Any) -> None:
        losses.append(float(loss.detach()))
        plain(loss, *given, **named)

    monkeypatch.setattr(torch.autograd, "backward", noted)
    for run in runs.values():
        assert measure(run, [toy_batch()]).wall > 0
    assert len(losses) == len(runs)
    for name, loss in zip(runs, losses, strict=True):  # adapters hardly move in a step
        assert loss == pytest.approx(losses[0], rel=0.01), name


def test_where_runs_take_no_layers_by_hand_ours_is_what_runs_take(
    place: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the head and packed rows alone."""
    monkeypatch.setattr("benchmarks.contestants.BY_HAND", ())
    here = Field(place.folder, place.device)
    runs = contestants(here, [name for name in ALL if name.startswith("ours")])
    assert list(runs) == [
        "ours --plain, recomputing", "ours padded, recomputing", "ours, recomputing", "ours",
    ]  # fmt: skip
    assert {name for name in ALL if name.startswith("ours")} == {*runs, *here.absent}
    for run in runs.values():
        assert measure(run, [toy_batch()]).wall > 0


def test_trl_at_its_best_trains_on_the_same_tokens_and_labels(place: Field) -> None:
    run = contestants(place, ["TRL at its best"])["TRL at its best"]
    laid_out, given = run.args[3], toy_batch()  # type: ignore[attr-defined]
    assert run.func is trl_step  # type: ignore[attr-defined]
    row, flat = laid_out(given), batches.flattened(given)
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(row[name], flat[name])
    assert int((row["labels"] != IGNORED).sum()) == learned_tokens(given)


def test_a_run_keeps_its_table_its_bars_and_its_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--shape", "toy", "--vocabulary", "512", "--rounds", "2", "--output",
               str(tmp_path / "speed.json"), "--only", "TRL default; ours eager"]  # fmt: skip
    speed.print_table(speed.run(speed.arguments(command), tmp_path / "place"))
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept["rounds"] == 2
    assert list(kept["contestants"]) == ["TRL default", "ours eager"]
    row = kept["contestants"]["ours eager"]
    assert row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
    assert 0 < row["share_of_limit"] < 1
    assert kept["bars"] == []  # none was set for a toy
    assert "limit:" in capsys.readouterr().out
    assert [path.name for path in plot.draw_all(tmp_path, tmp_path)] == ["speed.svg"]
    ET.parse(tmp_path / "speed.svg")


def test_a_bar_is_met_on_its_own_side_only() -> None:
    def rounds(wall: float, peak: float | None) -> list[Seen]:
        return [Seen(wall, wall, peak)] * 3

    found = {bars.TRL: rounds(7.0, 100.0), "ours": rounds(1.75, 20.0)}
    told = {v["bar"]: v for v in bars.verdicts(found, "160m", {"ours": 0.5})}
    fast = told["ours: tokens/s over TRL default"]
    assert (fast["value"], fast["met"], fast["goal_met"]) == (4.0, True, False)
    small = told["ours: peak memory over TRL default"]
    assert (small["value"], small["met"], small["goal_met"]) == (0.2, True, False)
    assert told["ours: share of the machine's limit"]["met"] is False
    assert told["ours eager: tokens/s over TRL default"]["met"] is None
    assert bars.line(fast).endswith("bar 3.5: met, goal 4.5: not met")
    found["ours"] = rounds(1.75, None)
    told = {v["bar"]: v for v in bars.verdicts(found, "160m", {})}
    assert told["ours: peak memory over TRL default"]["met"] is None


def test_bars_belong_to_the_runs_that_they_were_set_for() -> None:
    cases = {bars.case_of(*given) for given in (
        ("160m", 32000, "llama"), ("160m", 128256, "llama"), ("1b", 32000, "llama"),
        ("160m", 32000, "gpt_neox"),
    )}  # fmt: skip
    assert cases == {bar.case for bar in bars.BARS}
    assert bars.case_of("1b", 32000, "gpt_neox") == ""
    assert {name for bar in bars.BARS for name in (bar.contestant, bar.over)} <= {
        *ALL, "the machine's limit"
    }  # fmt: skip


def test_useful_arithmetic_is_that_of_the_matrices() -> None:
    size = SHAPES["160m"]
    assert size.block * size.layers == 94_371_840
    work = limit.useful_operations(size, 32000, [350] * 4, learned=round(1400 * 0.48))
    per_token = work / 1400
    assert 430e6 < per_token < 465e6  # 447 by another's arithmetic


@pytest.mark.parametrize("shape", ["160m", "1b"])
def test_the_other_family_has_as_many_weights(shape: str) -> None:
    config = config_of(shape, 32000, "gpt_neox")
    hidden, inner = config.hidden_size, config.intermediate_size
    assert 4 * hidden**2 + 2 * hidden * inner == pytest.approx(SHAPES[shape].block, rel=0.001)


@pytest.mark.parametrize("whole", [False, True])
def test_a_checkpoint_written_by_layers_opens_in_transformers(tmp_path: Path, whole: bool) -> None:
    from transformers import AutoModelForCausalLM

    write_checkpoint(config_of("toy", VOCABULARY), tmp_path, whole=whole)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == whole
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert bool((model.model.norm.weight == 1).all())


def test_real_rows_are_masked_as_a_run_masks_them(shared: Path) -> None:
    assert shared == batches.data_folder()
    assert all((shared / path).is_file() for path in batches.REAL.values())
    samples = batches.make_samples("alpaca", 12, 32000)
    assert len(samples) == 12
    for sample in samples:
        labels = sample["labels"]
        learned = [place for place, label in enumerate(labels) if label != IGNORED]
        assert learned == list(range(learned[0], learned[-1] + 1))  # the answer, and only it
        assert learned[0] > 0
        assert [labels[i] for i in learned] == [sample["input_ids"][i] for i in learned]


def test_a_line_is_fitted_and_its_worst_point_told() -> None:
    straight = slopes.fitted([(256, 1256.0), (512, 1512.0), (1024, 2024.0)])
    assert straight["bytes_per_token"] == pytest.approx(1.0)
    assert straight["bytes_at_zero"] == pytest.approx(1000.0)
    assert straight["largest_residual"] == pytest.approx(0.0, abs=1e-9)
    bent = slopes.fitted([(1, 1.0), (2, 4.0), (3, 9.0), (4, 16.0)])
    assert bent["largest_residual"] == pytest.approx(1.0 / 16)
    assert slopes.fitted([(1, 1.0)])["bytes_per_token"] is None


def test_memory_is_measured_until_a_step_is_too_long_or_fails(tmp_path: Path) -> None:
    held = {count: slopes.batch_of(count, "packed", VOCABULARY, _Padding()) for count in (256, 512)}
    assert held[512]["input_ids"].shape == (2, 256)

    def greedy(given: list[dict[str, torch.Tensor]]) -> None:
        torch.ones(given[0]["input_ids"].numel() * 2**15, dtype=torch.uint8)

    curve = slopes.grow(greedy, held, seconds=60)
    assert curve.to_dict()["bytes_per_token"] == pytest.approx(2**15, rel=0.2)
    assert len(slopes.grow(greedy, held, seconds=0).points) == 1

    grown = slopes.Curve([(256, 1e9)], [1.0])
    assert slopes.too_much(grown, 512, 60, free=3e9) == ""
    assert "would take" in slopes.too_much(grown, 512, 60, free=1e9)

    def broken(given: list[dict[str, torch.Tensor]]) -> None:
        raise RuntimeError("no memory")

    assert "no memory" in slopes.grow(broken, held, seconds=60).stopped


def test_both_sides_of_the_curves_start_alike_and_stay_together(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "EVERY", 2)
    monkeypatch.setattr(convergence, "HELD_OUT", 4)
    given = convergence.arguments(["--data", "alpaca", "--steps", "2", "--seeds", "1"])
    found = convergence.run(given, tmp_path)["data"]["alpaca"]["pairs"][0]
    assert found["road"] == {
        "head": "label-only", "batches": "packed", "attention": "qlora_core_rows",
        "layers": "5 of 5 by hand",
    }  # fmt: skip
    first, second = (found[side]["training"] for side in ("ours", "plain"))
    assert first == pytest.approx(second, rel=2e-3)
    assert [step for step, _ in found["ours"]["held_out"]] == [2]


def test_ours_leaves_the_spread_where_it_strays_further_than_seeds_do() -> None:
    def pair(ours: float, plain: float) -> dict[str, Any]:
        return {"ours": {"held_out": [(50, ours)]}, "plain": {"held_out": [(50, plain)]}}

    assert convergence.verdict([pair(3.01, 3.0), pair(3.09, 3.1)])["within"]
    assert not convergence.verdict([pair(3.2, 3.0), pair(3.09, 3.1)])["within"]


def test_loading_is_held_to_both_clocks_and_to_memory() -> None:
    def way(cpu: float, wall: float, peak: float) -> dict[str, float]:
        return {"cpu_seconds": cpu, "wall_seconds": wall, "peak_mib": peak}

    told = loading.verdicts({
        "transformers": way(30, 20, 2000), "ours": way(6, 5, 900),
        "ours reopening": way(2, 4, 700),
    })  # fmt: skip
    assert [v["value"] for v in told] == pytest.approx([0.2, 0.45, 15.0, 5.0])
    assert [v["met"] for v in told] == [True, False, True, False]


def test_a_contestant_elsewhere_answers_with_what_it_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    asked: list[int] = []
    runs = {"Unsloth": lambda given: asked.append(len(given))}
    monkeypatch.setattr(sys, "stdin", io.StringIO("Unsloth\nUnsloth\n"))
    elsewhere.answer(runs, [toy_batch()], said.append)
    assert asked == [1, 1]
    answers = [Seen(**json.loads(s.removeprefix(elsewhere.MARK))) for s in said]
    assert all(seen.wall >= 0 for seen in answers)
    assert elsewhere.absent(CPU) == "Unsloth needs a GPU"


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e5), st.booleans())
def test_axes_are_marked_at_a_few_round_values_within_them(low, times, logarithmic):
    axis = Axis.over([low, low * times], 0, 100, logarithmic=logarithmic)
    ticks = axis.ticks()
    assert (0 if logarithmic else 2) <= len(ticks) <= 6
    assert all(-1e-6 <= axis.place(tick) <= 100 + 1e-6 for tick in ticks)
    if logarithmic:
        assert all(math.log2(tick).is_integer() for tick in ticks)
    else:
        leading = {f"{b - a:.3e}"[0] for a, b in pairwise(ticks)}
        assert leading <= {"1", "2", "5"}


def test_pictures_are_whole_svg() -> None:
    line = {"bytes_per_token": 1024.0, "points": [[256, 3e6], [512, 5e6]]}
    drawn = plot.slopes({"curves": {"whole": {"ours": line}}, "shape": "m0", "vocabulary": 32000})
    assert "1 KiB" in drawn
    held = {"held_out": [[50, 3.0], [100, 2.5]]}
    pairs = [{"seed": 0, "ours": held, "plain": held}]
    drawn += plot.convergence({"data": {"<gsm8k>": {"pairs": pairs}}, "model": "a & b"})
    drawn += plot.loading({
        "shape": "1b", "medians": {"ours": {"cpu_seconds": 3.0, "peak_mib": 800.0}}
    })  # fmt: skip
    for one in drawn.split("</svg>")[:-1]:
        ET.fromstring(one + "</svg>")
