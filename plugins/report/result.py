"""The upper half of the page: what came of the run."""

from collections.abc import Mapping
from typing import Any

from .charts import Line, chart, smooth
from .markup import Html, duration, number, size, tag, unit_of
from .reading import Metrics, Record, finite

TONES = {"finished": "good", "running": "", "failed": "bad"}


def header(record: Record, _: Metrics) -> Html:
    """The model, when and on what it was trained, and how the run stands."""
    status = str(record("status") or "unknown")
    hardware = record.map("hardware")
    facts = (
        _short(record("started")), duration(record("seconds")),
        hardware.get("name") or hardware.get("device"), record("run_id"),
    )  # fmt: skip
    badge = tag("span", status, class_=f"badge {TONES.get(status, 'warn')}")
    line = " · ".join(str(fact) for fact in facts if fact)
    return tag("header", badge, tag("h1", name_of(record)), tag("div", line, class_="soft"))


def headline(record: Record, metrics: Metrics) -> Html:
    """The result in one sentence and a few figures."""
    evaluation, loss = record.map("evaluation"), record.map("loss")
    measured = record("memory", "measured_peak_bytes")
    planned = record("memory", "planned_total_bytes")
    learned = record("learned_tokens")
    best = f"best {number(evaluation.get('best'))} at step {number(evaluation.get('best_step'))}"
    tiles = (
        ("evaluation loss", _change(evaluation.get("before"), evaluation.get("after")),
         best if finite(evaluation.get("best")) else ""),
        ("training loss, first and last step", _change(loss.get("first"), loss.get("last")), ""),
        ("optimizer steps", number(record("steps") or len(metrics.training) or None), ""),
        ("tokens seen", number(record("tokens")), f"{number(learned)} learned" if learned else ""),
        ("peak memory, measured", size(measured), f"planned {size(planned)}" if planned else ""),
    )  # fmt: skip
    shown = [
        tag("div", tag("b", value), tag("div", label), tag("div", more), class_="tile card")
        for label, value, more in tiles
        if value
    ]
    sentence, remark, tone = _verdict(record, metrics)
    first = tag("p", sentence, class_=f"headline {tone}"), tag("p", remark, class_="soft")
    tiles_ = tag("div", *shown, class_="tiles") if shown else None
    return tag("section", tag("div", *first, class_="card", style="margin-top:18px"), tiles_)


def _verdict(record: Record, metrics: Metrics) -> tuple[str, str, str]:
    """The result in one sentence, what to make of it, and its tone."""
    status = record("status")
    before, after = record("evaluation", "before"), record("evaluation", "after")
    if status == "running":
        return "The run is going on.", f"{len(metrics.training)} steps so far.", ""
    if status in ("failed", "stopped"):
        text = record("error") or "run.json records no reason"
        return f"The run {status}.", f"{text}. The curves below end there.", "bad"
    if not (finite(before) and finite(after)):
        remark = (
            "The training loss alone does not show what the model does on text that it has "
            "not seen: give rows to evaluate on."
        )
        return "No evaluation before and after was made.", remark, "warn"
    part = f"from {before:.4g} to {after:.4g}"
    best = record("evaluation", "best")
    if after >= before:
        remark = "On the rows held out the adapter is no better than the base model."
        return f"Evaluation loss did not improve: {part}.", remark, "bad"
    remark = f"{1 - after / before:.0%} less on rows that were not trained on."
    if finite(best) and after > best * 1.01:
        at = record("evaluation", "best_step")
        remark += f" It was {best:.4g} at step {at}: later steps overfitted."
    return f"Evaluation loss fell {part}.", remark, "good"


def notices(record: Record, metrics: Metrics) -> Html:
    """Everything that was noticed on the way, each with its remedy."""
    places = (("notices",), ("detection", "warnings"), ("data", "warnings"))
    found = [notice for place in places for notice in record.list(*place)]
    lost = sum(not finite(line.get("loss")) for line in metrics.training)
    if lost:
        message = f"{lost} of {len(metrics.training)} steps had no finite loss"
        remedy = "lower the learning rate; in float16, train in bfloat16"
        found.insert(0, {"message": message, "remedy": remedy})
    if metrics.unreadable:
        found.append(f"unreadable lines of metrics.jsonl, left out here: {metrics.unreadable}")
    entries = [n if isinstance(n, Mapping) else {"message": n} for n in found]
    unique = {str(n.get("message", n)): n.get("remedy") for n in entries}
    shown = [tag("div", tag("b", text), tag("p", remedy) if remedy else None, class_="notice")
             for text, remedy in unique.items()]  # fmt: skip
    return tag("section", tag("h2", "Worth knowing"), *shown) if shown else Html()


def samples(record: Record, _: Metrics) -> Html:
    """The same prompts, answered before and after training, side by side."""
    found = [sample for sample in record.list("samples") if isinstance(sample, Mapping)]
    if not found:
        return Html()
    return tag("section", tag("h2", "Answers before and after"), *map(_sample, found))


def _sample(sample: Mapping[str, Any]) -> Html:
    def part(title: str, text: Any, class_: str = "") -> Html:
        shown = tag("pre", text) if text else tag("span", "nothing", class_="soft small")
        return tag("div", tag("h3", title), shown, class_=class_)

    columns = (("Before", "before"), ("After", "after"), ("Expected", "expected"))
    parts = [part(title, sample[key]) for title, key in columns if sample.get(key) is not None]
    prompt = part("Prompt", _conversation(sample.get("prompt")), "prompt")
    return tag("div", prompt, tag("div", *parts, class_="grid"), class_="sample card")


def _conversation(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return str(prompt or "")
    turns = (turn if isinstance(turn, Mapping) else {"content": turn} for turn in prompt)
    lines = (f"{turn.get('role', '')}: {turn.get('content', '')}".lstrip(": ") for turn in turns)
    return "\n".join(lines)


def curves(record: Record, metrics: Metrics) -> Html:
    """The loss, wide, and the other measures of every step."""
    loss, evaluation = metrics.points("loss"), metrics.points("eval_loss")
    last = max((step for step, _ in [*loss, *evaluation]), default=0)
    before = record("evaluation", "before")
    if finite(before) and evaluation and evaluation[0][0] > 0:
        evaluation.insert(0, (0, before))
    lines = [Line("training", loss, "faint"), Line("training, smoothed", smooth(loss))]
    if len(loss) < 12:
        lines = [Line("training", loss)]
    lines += [Line("evaluation", evaluation, "", "eval"), Line("", evaluation, "dots", "eval")]
    planned = record("memory", "planned_total_bytes")
    used = [Line("measured", metrics.points("peak_memory_bytes"))]
    if finite(planned) and used[0].points:
        used.append(Line("planned", [(1, planned), (last, planned)], "dashed", "eval"))
    charts = (
        chart("Learning rate", [Line("learning rate", metrics.points("learning_rate"))]),
        chart("Gradient norm", [Line("before clipping", metrics.points("gradient_norm"))]),
        chart("Throughput", [Line("tokens per second", metrics.points("tokens_per_second"))]),
        chart("Memory", used, show=size, unit=unit_of(last for _, last in used[0].points)[1]),
    )  # fmt: skip
    main = chart("Loss per learned token", lines, zero=False)
    if not main:
        return Html()
    wide = tag("div", main, class_="card tall")
    rest = [tag("div", one, class_="card") for one in charts if one]
    grid = tag("div", *rest, class_="grid pairs")
    return tag("section", tag("h2", "Curves"), wide, grid)


def name_of(record: Record) -> str:
    """The model's folder or Hub id, short enough for a title."""
    model = str(record("settings", "model") or record("detection", "model") or "unnamed model")
    parts = model.replace("\\", "/").rstrip("/").split("/")
    return model if len(parts) == 2 else parts[-1]


def _short(moment: Any) -> str:
    return str(moment or "").replace("T", " ")[:16]


def _change(before: Any, after: Any) -> str:
    if not finite(after):
        return number(before)
    return f"{number(before)} → {number(after)}" if finite(before) else number(after)
