"""Every suite of the sweep: one line each, its module beside this one."""

from __future__ import annotations

import sys

from exams.suite import Suite, main

SUITES: list[Suite] = []

if __name__ == "__main__":
    sys.exit(main("sweep", SUITES))
