# Two commands are all that a newcomer needs: `make demo` and `make test`.
# Each uses the active environment, else makes .venv, and installs what is missing.

ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else ifdef CONDA_PREFIX
ENV := $(CONDA_PREFIX)
else
ENV := $(CURDIR)/.venv
endif
PYTHON := $(ENV)/bin/python
STAMP := $(ENV)/.qlora-core-installed
# What is installed depends on this checkout and on these two files: anything else installs anew.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | tr ' ' -)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test setup lint sweep soak bench speed clean

demo: setup
	$(PYTHON) -m qlora_core.cli.main demo

test: setup
	$(PYTHON) -m pytest

setup:
	@test "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" || $(MAKE) --no-print-directory install

.PHONY: install
install:
	test -x $(PYTHON) || python3 -m venv $(ENV)
	$(PYTHON) -m pip --version > /dev/null || $(PYTHON) -m ensurepip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@echo "$(KEY)" > $(STAMP)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: setup speed
	$(PYTHON) benchmarks/quality.py
	@echo "results: benchmarks/results/quality.json"

speed: setup
	$(PYTHON) benchmarks/speed.py --rounds 5 --batches 2 --output benchmarks/results/speed.json
	@echo "results: benchmarks/results/speed.json"

# The long exams: every architecture; every fault. Their figures are kept with the code.
sweep: setup
	$(PYTHON) -m exams.sweep --json benchmarks/results/sweep.json

soak: setup
	$(PYTHON) -m exams.soak --jobs 0 --json benchmarks/results/soak.json

clean:
	rm -rf build dist demo-run .pytest_cache .mypy_cache .ruff_cache
