"""The lower half of the page: what was detected, read, planned and set, and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .markup import Html, number, size, table, tag
from .reading import Metrics, Record, finite


def detection(record: Record, _: Metrics) -> Html:
    """The family, the reason, and what became 4-bit and what trainable."""
    found, family = record.map("detection"), record.map("detection", "architecture")
    if not found:
        return Html()
    adapters = _adapters(record)
    prompt = record.map("detection", "prompt_format")
    tokens = record.map("detection", "tokenizer")
    rows = [
        ("Family", f"{family.get('name')} (by {family.get('fit')})"),
        ("Because", family.get("reason")),
        ("Stated by", f"{family.get('provided_by')} {family.get('version') or ''}"),
        ("Target modules", _listed(record("detection", "targets", "target_modules"))),
        ("Target parameters", _listed(record("detection", "targets", "target_parameters"))),
        ("Kept unquantized", _listed(record("detection", "targets", "keep_unquantized"))),
        ("Prompt format", f"{prompt.get('name')} (from {prompt.get('source')})" if prompt else ""),
        ("Ends a turn", _listed(tokens.get("turn_end"))),
        ("Pads with", _listed(tokens.get("pad"))),
    ]
    left = tag("div", table(row for row in rows if row[1]), _verdicts(record), class_="card")
    cards = [tag("div", part, class_="card") for part in (_quantization(record), adapters) if part]
    right = tag("div", *cards, class_="stack") if cards else None
    title = tag("h2", "What was detected, and why")
    return tag("section", title, tag("div", left, right, class_="grid"))


def _verdicts(record: Record) -> Html | None:
    verdicts = [v for v in record.list("detection", "verdicts") if isinstance(v, Mapping)]
    if len(verdicts) < 2:
        return None
    rows = ((v.get("name"), v.get("fit"), v.get("reason")) for v in verdicts)
    return tag("details", tag("summary", f"what all {len(verdicts)} families said"), table(rows))


def _quantization(record: Record) -> Html | None:
    found = record.map("quantization")
    if not found:
        return None
    unquantized = record.map("quantization", "unquantized")
    parts = {"4-bit": record.map("quantization", "quantized"), **unquantized}
    rows = [
        (name, number(part.get("weights")), size(part.get("bytes")))
        for name, part in parts.items()
        if isinstance(part, Mapping) and part.get("weights")
    ]
    share = found.get("fraction")
    title = f"{found.get('method') or 'not quantized'}".upper()
    text = f"{title}: {share:.1%} of the weights are 4-bit" if finite(share) else title
    return tag("div", tag("h3", text), table(rows, numbers=True))


def _adapters(record: Record) -> Html | None:
    found = record.map("adapters")
    if not found:
        return None
    roles = [
        (
            role,
            _listed(part.get("names")),
            number(part.get("modules")),
            number(part.get("parameters")),
        )
        for role, part in record.map("adapters", "by_role").items()
        if isinstance(part, Mapping)
    ]
    rows = [("role", "on", "layers", "parameters"), *roles] if roles else flat(found)
    share = found.get("fraction")
    facts = [
        f"rank {number(found.get('rank'))}, alpha {number(found.get('alpha'))}",
        f"{share:.2%} of all weights are trained" if finite(share) else "",
        *(name for key, name in (("dora", "DoRA"), ("rslora", "rsLoRA")) if found.get(key)),
    ]
    line = "; ".join(fact for fact in facts if fact)
    left = record.map("adapters", "not_adapted")
    without = ", ".join(f"{name} ({count})" for name, count in left.items())
    note = tag("p", f"Without adapter: {without}", class_="soft small") if without else None
    return tag("div", tag("h3", f"Adapters: {line}"), table(rows, numbers=True), note)


def data(record: Record, _: Metrics) -> Html:
    """What became of every row."""
    found = record.map("data")
    if not found:
        return Html()
    title = tag("h2", "Data")
    cards = [
        tag("div", tag("h3", name), table(rows, numbers=True), class_="card")
        for name, rows in (("Rows", _rows(record)), ("Learned from", _samples(record)))
    ]
    return tag("section", title, tag("div", *cards, class_="grid"))


def _rows(record: Record) -> list[tuple[str, str]]:
    found = record.map("data")
    dropped = record.map("data", "dropped")
    counts = {
        **{_file(f): f.get("rows") for f in record.list("data", "files") if isinstance(f, Mapping)},
        "read": found.get("rows"),
        "kept": found.get("kept"),
        **{f"dropped: {reason}": count for reason, count in dropped.items()},
        "refused": found.get("refused") or None,
        "cut at the start of the prompt": found.get("cut"),
        "long rows split": found.get("split"),
        "duplicates": found.get("duplicates"),
        "taken out, as equal samples are evaluated on": found.get("evaluated_on"),
        "beside the data, not read": found.get("ignored_count") or None,
    }
    return [(name, shown) for name, count in counts.items() if (shown := _count(count))]


def _file(entry: Mapping[str, Any]) -> str:
    return Path(str(entry.get("name"))).name


def _samples(record: Record) -> list[tuple[str, str]]:
    found = record.map("data")
    tokens, learned = found.get("tokens"), found.get("learned_tokens")
    share = f" ({learned / tokens:.1%})" if finite(learned) and finite(tokens) and tokens else ""
    lengths = record.map("data", "lengths").items()
    counts = [
        ("training samples", number(found.get("train_samples"))),
        ("evaluation samples", number(found.get("evaluation_samples"))),
        ("tokens of training samples", number(tokens)),
        ("of these learned", number(learned) + share),
        *((f"tokens per sample, {name}", number(value)) for name, value in lengths),
    ]
    return [row for row in counts if row[1]]


def memory(record: Record, _: Metrics) -> Html:
    """The planned terms, their sum, and the measured peak beside it."""
    planned = {k: v for k, v in record.map("memory", "planned").items() if finite(v)}
    total, peak = record("memory", "planned_total_bytes"), record("memory", "measured_peak_bytes")
    if not planned and not finite(peak):
        return Html()
    total = total if finite(total) else sum(planned.values())
    most = max(total, peak if finite(peak) else 0, 1)
    rows = [_bar(name.replace("_", " "), value, most) for name, value in planned.items()]
    rows += [_bar("planned peak", total, most, row="total")] if planned else []
    if finite(peak):
        rows.append(_bar("measured peak", peak, most, bar="measured", row="total"))
    road = record("memory", "planned_for")
    remarks = [f"Planned for {road}."] if road else []
    if total < sum(planned.values()):
        remarks.append(
            "The terms do not all fall into one moment: the peak is less than their sum."
        )
    if finite(peak) and total:
        remarks.append(f"Measured is {peak / total:.0%} of the plan.")
    note = tag("p", " ".join(remarks), class_="soft small")
    card = tag("div", tag("table", tag("tbody", *rows)), note, class_="card")
    return tag("section", tag("h2", "Memory, planned and measured"), card)


def _bar(name: str, value: float, most: float, *, bar: str = "", row: str = "") -> Html:
    drawn = tag("div", class_=f"bar {bar}", style=f"width:{100 * value / most:.2f}%")
    return tag("tr", tag("th", name), tag("td", size(value), class_="number"),
               tag("td", drawn, class_="bars"), class_=row)  # fmt: skip


def settings(record: Record, _: Metrics) -> Html:
    """All that is needed to do it again."""
    hardware = {**record.map("hardware")}
    if "memory_bytes" in hardware:
        hardware["memory"] = size(hardware.pop("memory_bytes"))
    parts = (("Settings", record.map("settings")), ("Versions", record.map("versions")),
             ("Hardware", hardware))  # fmt: skip
    cards = [tag("div", tag("h3", title), table(flat(values)), class_="card")
             for title, values in parts if values]  # fmt: skip
    return tag("section", tag("h2", "Settings and versions"), tag("div", *cards, class_="grid"))


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows, with the keys joined by a middle dot."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values, 1):
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += flat(value, f"{name} · ")
        elif value is not None:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: Any) -> str:
    """A count, of a number or of a ``{count, examples}`` entry; empty for none."""
    counted = value.get("count") if isinstance(value, Mapping) else value
    where = value.get("examples") if isinstance(value, Mapping) else None
    if not counted:
        return ""
    first = f" (first at {Path(str(where[0])).name})" if where else ""
    return number(counted) + first


def _listed(value: Any) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(one) for one in values if one not in (None, ""))
