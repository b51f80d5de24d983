"""Every suite of the soak: one line each, its module beside this one."""

from __future__ import annotations

import sys

from exams.soak import crash_points, damage, hostile_folders, resume
from exams.suite import Suite, main

SUITES: list[Suite] = [
    resume.SUITE,
    damage.SUITE,
    crash_points.SUITE,
    hostile_folders.SUITE,
]

if __name__ == "__main__":
    sys.exit(main("soak", SUITES))
