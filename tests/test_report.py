"""The report says what happened, copes with what is missing, and loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from qlora_plugins.report import write
from qlora_plugins.report.charts import Line, axis, chart, smooth, thin

from qlora_core import Run, detect
from qlora_core.registry.detect import installed
from qlora_core.registry.manager import Registry
from qlora_core.training.runs import new_record

EVIL = "</pre><script src='http://evil.example/x.js'>alert(1)</script>"


def metrics(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({
            "step": step, "loss": 3 / step, "learning_rate": 1e-4, "gradient_norm": 1.5,
            "tokens": 900, "learned_tokens": 300, "seconds": 0.5, "tokens_per_second": 1800.0,
            "peak_memory_bytes": 3 * 2**30,
        })  # fmt: skip
        if step % 5 == 0:
            lines.append({"step": step, "eval_loss": 4 / step, "eval_tokens": 100})
    return lines


def record(**changes: Any) -> dict[str, Any]:
    return new_record() | {
        "status": "finished", "seconds": 75.0, "steps": 20, "tokens": 18_000,
        "settings": {"model": "somebody/base-8b", "rank": 16, "learning_rate": 1e-4},
        "detection": detect(installed().architectures["llama"].example).to_dict(),
        "adapters": {"rank": 16, "alpha": 32, "fraction": 0.012, "by_role": {
            "attention": {"modules": 8, "parameters": 12_345, "names": ["q_proj", "v_proj"]}}},
        "data": {"rows": 100, "kept": 90, "dropped": {"no answer": {
            "count": 10, "examples": ["rows.jsonl:7"]}}, "tokens": 18_000, "learned_tokens": 6_000},
        "memory": {"planned": {"weights": 2**30, "activations": 2**31},
                   "planned_total_bytes": 3 * 2**30, "planned_for": "the plain road",
                   "measured_peak_bytes": 2**31},
        "evaluation": {"before": 2.0, "after": 0.5, "best": 0.5, "best_step": 20},
        "loss": {"first": 3.0, "last": 0.15},
        "samples": [{"prompt": "2+2?", "expected": "4", "before": "2+2?2+2?", "after": "4"}],
    } | changes  # fmt: skip


def page(folder: Path, lines: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    text = "".join(json.dumps(line) + "\n" for line in metrics(20) if lines is None)
    text += "".join(json.dumps(line) + "\n" for line in lines or [])
    (folder / "metrics.jsonl").write_text(text)
    return write(folder, record(**changes)).read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Tags that do not match, and every address that a browser would fetch."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def test_the_page_says_what_happened_and_why(tmp_path: Path) -> None:
    text = page(tmp_path)
    for words in (
        "Evaluation loss fell from 2 to 0.5.", "75% less", "somebody/base-8b", "1 min 15 s",
        "model_type is", "q_proj, v_proj", "12,345", "dropped: no answer",
        "10 (first at rows.jsonl:7)", "6,000 (33.3%)",
        "Planned for the plain road. Measured is 67% of the plan.", "2+2?2+2?",
    ):  # fmt: skip
        assert words in text, words


def test_it_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert check(text).addresses == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_all_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    sample = dict.fromkeys(("prompt", "expected", "before", "after"), EVIL)
    turns = {"prompt": [{"role": "user", "content": EVIL}], "after": EVIL}
    notice = {"code": EVIL, "message": EVIL, "remedy": EVIL}
    text = page(
        tmp_path, samples=[sample, turns], notices=[notice, EVIL], run_id=EVIL, error=EVIL,
        settings={"model": EVIL, EVIL: EVIL}, data={"dropped": {EVIL: 3}}, versions={EVIL: EVIL},
    )  # fmt: skip
    assert text.count("&lt;script src=") > 8
    assert check(text).scripts == 1  # the template's own
    assert check(text).addresses == []


@pytest.mark.parametrize("missing", sorted(record()))
def test_any_part_of_the_record_may_be_missing(tmp_path: Path, missing: str) -> None:
    without = {key: value for key, value in record().items() if key != missing}
    check(write(tmp_path, without).read_text())


@pytest.mark.parametrize("odd", [None, [], "text", 3, {"x": None}])
def test_parts_of_an_unknown_shape_are_passed_over(tmp_path: Path, odd: Any) -> None:
    keys = set(record()) - {"status"}
    check(write(tmp_path, dict.fromkeys(keys, odd)).read_text())


def test_an_empty_record_still_gives_a_page(tmp_path: Path) -> None:
    assert "unnamed model" in write(tmp_path, {}).read_text()


def test_a_failed_run_says_why_and_shows_its_curves(tmp_path: Path) -> None:
    text = page(tmp_path, status="failed", error="TrainingStopped: the loss is NaN at step 12")
    assert "The run failed." in text
    assert "the loss is NaN at step 12" in text
    assert "Loss per learned token" in text


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        ({"before": 1.0, "after": 1.25}, "did not improve: from 1 to 1.25"),
        (
            {"before": 2.0, "after": 1.5, "best": 1.0, "best_step": 7},
            "It was 1 at step 7: later steps overfitted.",
        ),
        ({"before": None, "after": None}, "does not show what the model does on text that it has"),
        ({"before": float("nan"), "after": 1.0}, "No evaluation before and after was made."),
    ],
)
def test_the_headline_is_honest(tmp_path: Path, evaluation: Any, expected: str) -> None:
    assert expected in page(tmp_path, evaluation=evaluation)


def test_steps_without_a_finite_loss_are_counted_not_drawn(tmp_path: Path) -> None:
    lines = [{**line, "loss": None} if line["step"] == 3 else line for line in metrics(20)]
    text = page(tmp_path, lines=lines)
    assert "1 of 20 steps had no finite loss" in text
    assert "nan" not in re.findall(r'<path d="([^"]*)"', text)


def test_a_line_cut_by_a_crash_is_counted(tmp_path: Path) -> None:
    page(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    text = write(tmp_path, record()).read_text()
    assert "unreadable lines of metrics.jsonl, left out here: 1" in text


def test_it_is_written_by_the_hooks_at_start_evaluation_and_end(tmp_path: Path) -> None:
    registry = Registry.from_environment()
    run = Run(tmp_path, record(status="running"))
    report = tmp_path / "report.html"
    registry.observe("qlora_run_started", run=run)
    assert "The run is going on." in report.read_text()
    report.unlink()
    registry.observe("qlora_step_finished", run=run, step={"step": 1, "loss": 1.0})
    assert not report.exists()
    registry.observe("qlora_step_finished", run=run, step={"step": 1, "eval_loss": 1.0})
    assert report.exists()
    run.finish("interrupted")
    registry.observe("qlora_run_finished", run=run, outcome="interrupted")
    assert ">interrupted</span>" in report.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [r.name for r in registry.records if r.status == "broken"] == []


def test_a_long_run_is_thinned_without_losing_its_spikes() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[77_777] = (77_777.0, 50.0)
    thinned = thin(points)
    assert len(thinned) <= 602
    assert (77_777.0, 50.0) in thinned
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])


def test_smoothing_keeps_a_straight_line_straight() -> None:
    line = [(float(step), 2.0 * step) for step in range(100)]
    smoothed = [value for _, value in smooth(line)]
    assert smoothed[10:-10] == pytest.approx([value for _, value in line[10:-10]])


@pytest.mark.parametrize(
    ("values", "zero", "expected"),
    [
        ([0.3, 3.1], True, [0, 1, 2, 3, 4]),
        ([2.0, 2.0], False, [2.0, 2.5]),
        ([1e-4, 2e-4], True, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        ([0.0], True, [0.0, 0.25]),
        ([-3.0, 9.0], True, [-5, 0, 5, 10]),
    ],
)
def test_axes_have_round_numbers_around_all_values(
    values: list[float], zero: bool, expected: list[float]
) -> None:
    assert axis(values, zero=zero) == pytest.approx(expected)


def test_a_chart_of_nothing_is_nothing() -> None:
    assert chart("Loss", [Line("training", [])]) == ""
    assert "step 4" in chart("Loss", [Line("training", [(4, 1.0)])])
