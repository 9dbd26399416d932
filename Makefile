# Each target works in a fresh clone (Linux, Python >= 3.11, pip, a C++ compiler) and says what it runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test test-faults fuzz works-with lint docs docs-check setup bench bench-cpu aot aot-oldest gpu-check clean

# Starts the run, or goes on with one that was stopped.
demo: setup
	$(BIN)/unistd train --config demo --resume

# A process a core, with one thread each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Runs that are killed and go on, compared file by file with one that was not; minutes.
test-faults: setup
	$(BIN)/python -m pytest tests/faults/kills.py tests/faults/two_processes.py

# The page "what works with what": the tests that show it, then the page of their marks.
works-with: setup
	$(BIN)/python -m pytest -m shows
	$(BIN)/python tests/support/works_with.py

# The documentation, its examples run, as pages in docs/_build/html; a warning is an error.
docs: setup
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The same without running the examples: seconds.
docs-check: setup
	$(BIN)/sphinx-build -W --keep-going -q -D plot_gallery=0 -b html docs docs/_build/check

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(READY)

# torch first: the compiled CPU backend is built against the very torch that it will run in.
$(READY): setup.py pyproject.toml constraints.txt $(wildcard kernels/cpu/*)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy setuptools wheel ninja
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[unistd,bench,dev,docs]"
	touch $(READY)

# The compiled kernels instrumented against reads out of bounds and undefined behaviour: their tests, then random calls,
# right and wrong, for ten minutes (FUZZ_SECONDS for each of five functions).
FUZZ_SECONDS ?= 120
fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) kernels/cpu/check_memory.sh $(BIN)/python

# All comparisons that this machine can run, their figures, and the tables of the READMEs.
bench: setup
	$(BIN)/python -m bench all

# The CPU backend against its targets, and the whole training step.
bench-cpu: setup
	$(BIN)/python -m bench cpu_targets

# Every Triton kernel with every plan, compiled ahead of time: registers, spills, shared memory, wgmma. No GPU needed.
aot: setup
	$(BIN)/python bench/gpu/aot.py

# The same under the oldest Triton that is supported, in an environment of its own, and what it compiles in the emulator.
aot-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet triton==3.6.0 torch==2.13.0 numpy safetensors pytest pytest-timeout
	.venv-oldest/bin/python bench/gpu/aot.py
	.venv-oldest/bin/python -m pytest tests/kernels/triton/test_compiled.py tests/kernels/triton/test_emulator.py

# On a machine with a GPU and torch: correctness, launches, plan search, timings; at most ten minutes.
gpu-check:
	$(PYTHON) -m bench.gpu.check

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info fastmoe_lora/*.so
