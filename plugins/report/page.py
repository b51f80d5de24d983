"""The whole page, from a run's record and metrics."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .facts import data, detection, memory, settings
from .reading import Metrics, Record
from .result import curves, header, headline, name_of, notices, samples

SECTIONS = (header, headline, notices, samples, curves, detection, data, memory, settings)


def page(record: Mapping[str, Any], metrics: Metrics) -> str:
    """The HTML. Leaves out what the record lacks; escapes everything that it holds."""
    run = Record(record)
    body = "\n".join(section(run, metrics) for section in SECTIONS)
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(f"{name_of(run)} · qlora-core"), body=body)
