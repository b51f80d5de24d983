"""What is claimed about speed and memory, measured: ``python -m benchmarks.NAME``."""

import os

# For all contestants alike, and before torch loads: others may be using the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
