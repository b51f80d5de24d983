"""Every suite of the soak: one line each, its module beside this one."""

from __future__ import annotations

import sys

from exams.soak import (
    bad_data,
    changes,
    clean,
    crash_points,
    damage,
    disks,
    fuzz_config,
    hostile_adapters,
    hostile_folders,
    hostile_templates,
    injection,
    kills,
    locks,
    long_soak,
    mutation,
    numeric,
    plugin_faults,
    ranks,
    remote_code,
    resume,
    signals,
)
from exams.suite import Suite, main

SUITES: list[Suite] = [
    resume.SUITE,
    damage.SUITE,
    changes.SUITE,
    numeric.SUITE,
    clean.SUITE,
    mutation.SUITE,
    ranks.SUITE,
    crash_points.SUITE,
    crash_points.POWER_SUITE,
    kills.SUITE,
    disks.SUITE,
    signals.SUITE,
    locks.SUITE,
    locks.FOREIGN_SUITE,
    long_soak.SUITE,
    hostile_folders.SUITE,
    fuzz_config.SUITE,
    bad_data.FILES_SUITE,
    bad_data.ROWS_SUITE,
    bad_data.MUTATED_SUITE,
    injection.TOKENS_SUITE,
    injection.FUZZ_SUITE,
    injection.BENIGN_SUITE,
    hostile_adapters.SUITE,
    hostile_templates.SUITE,
    plugin_faults.SUITE,
    remote_code.SUITE,
]

if __name__ == "__main__":
    sys.exit(main("soak", SUITES))
