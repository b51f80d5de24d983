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
export GOMP_SPINCOUNT ?= 2000

.PHONY: demo test setup lint sweep soak clean
.PHONY: bench speed speed-vocabulary speed-1b speed-neox speed-gsm8k speed-alpaca
.PHONY: slopes convergence exactness loading plot

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

# What is claimed about speed and memory, a command each; results in benchmarks/results/. Nothing
# else should run meanwhile. speed-gsm8k, speed-alpaca and convergence need QLORA_TEST_DATA.
RESULTS := benchmarks/results
SPEED := $(PYTHON) -m benchmarks.speed
PAIR := transformers flattened, recomputing; transformers flattened

bench: speed speed-vocabulary speed-1b speed-neox speed-gsm8k speed-alpaca slopes convergence exactness loading plot
	$(PYTHON) benchmarks/quality.py

speed: setup
	$(SPEED) --rounds 3 --batches 2 --output $(RESULTS)/speed.json

speed-vocabulary: setup
	$(SPEED) --vocabulary 128256 --rounds 2 --output $(RESULTS)/speed-vocabulary.json \
	  --only "TRL default; TRL at its best; $(PAIR); ours, recomputing; ours"

speed-1b: setup
	$(SPEED) --shape 1b --rounds 2 --output $(RESULTS)/speed-1b.json \
	  --only "TRL default; TRL at its best; $(PAIR); ours, recomputing; ours"

speed-neox: setup
	$(SPEED) --family gpt_neox --rounds 2 --output $(RESULTS)/speed-neox.json

speed-gsm8k speed-alpaca: speed-%: setup
	$(SPEED) --lengths $* --rounds 3 --batches 2 --output $(RESULTS)/speed-$*.json

slopes: setup
	$(PYTHON) -m benchmarks.slopes --tokens 256,1024,2048,4096,8192 --seconds 400 --output $(RESULTS)/slopes.json

convergence: setup
	$(PYTHON) -m benchmarks.convergence --output $(RESULTS)/convergence.json

exactness: setup
	$(PYTHON) -m benchmarks.exactness --output $(RESULTS)/exactness.json

loading: setup
	$(PYTHON) -m benchmarks.loading --output $(RESULTS)/loading.json

plot: setup
	$(PYTHON) -m benchmarks.plot
	$(PYTHON) -m benchmarks.tables

# The long exams: every architecture; every fault. Their figures are kept with the code.
sweep: setup
	$(PYTHON) -m exams.sweep --jobs 0 --json benchmarks/results/sweep.json

soak: setup
	$(PYTHON) -m exams.soak --jobs 0 --json benchmarks/results/soak.json

clean:
	rm -rf build dist demo-run .pytest_cache .mypy_cache .ruff_cache
