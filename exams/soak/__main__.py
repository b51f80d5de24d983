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

# Longest first: what runs side by side should end together.
SUITES: list[Suite] = [
    long_soak.SUITE,
    crash_points.POWER_SUITE,
    crash_points.SUITE,
    kills.SUITE,
    injection.FUZZ_SUITE,
    mutation.SUITE,
    hostile_templates.SUITE,
    resume.SUITE,
    damage.SUITE,
    ranks.SUITE,
    fuzz_config.SUITE,
    clean.SUITE,
    hostile_adapters.SUITE,
    locks.SUITE,
    signals.SUITE,
    remote_code.SUITE,
    disks.SUITE,
    bad_data.FILES_SUITE,
    injection.BENIGN_SUITE,
    injection.TOKENS_SUITE,
    bad_data.MUTATED_SUITE,
    plugin_faults.SUITE,
    changes.SUITE,
    bad_data.ROWS_SUITE,
    hostile_folders.SUITE,
    numeric.SUITE,
    locks.FOREIGN_SUITE,
]

if __name__ == "__main__":
    sys.exit(main("soak", SUITES))
