"""Every suite of the sweep: one line each, its module beside this one."""

from __future__ import annotations

import sys

from exams.suite import Suite, main
from exams.sweep import (
    detection,
    experts,
    fallback,
    image_text,
    legacy,
    nf4,
    plain_peft,
    time_travel,
)

SUITES: list[Suite] = [
    detection.NAMES,
    detection.TARGETS,
    plain_peft.SUITE,
    nf4.SUITE,
    experts.SUITE,
    fallback.SUITE,
    fallback.FULL_SIZE,
    time_travel.SUITE,
    image_text.SUITE,
    legacy.SUITE,
]

if __name__ == "__main__":
    sys.exit(main("sweep", SUITES))
