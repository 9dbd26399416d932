# make demo | test | lint | setup: each works in a fresh clone (Linux, Python >= 3.11, pip, a C++ compiler) and says what it runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test lint setup clean

demo: setup
	$(BIN)/unistd train --config demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(READY)

# torch first: the compiled CPU backend is built against the very torch that it will run in.
$(READY): setup.py pyproject.toml constraints.txt $(wildcard kernels/cpu/*)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy setuptools wheel ninja
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[unistd,bench,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info fastmoe_lora/*.so
