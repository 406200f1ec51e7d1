# Every target makes what it needs: on a fresh machine `make quickstart` and `make test` are enough.
#
#   PYTHON      the interpreter that .venv is made with (3.11 or newer)
#   PIP_ARGS    passed to every pip install:   make install PIP_ARGS='--no-cache-dir'
#   TORCH_ARGS  passed to torch's alone; without a GPU, the small build is had by
#               make install TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'
#   WORKERS     processes that run the tests
#   ARGS        which benchmarks, and their options:   make bench ARGS='head --only jsd'
PYTHON ?= python3.11
PIP_ARGS ?=
TORCH_ARGS ?=
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# One thread a process: on tensors as small as the tests', threads cost more than they give.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check lint numerics bench docs wheel clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' Makefile

install: $(STAMP)  ## make .venv with everything in it

# Torch comes first and pinned: whatever asks for it later finds it there and pulls no other build.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not installed; name another: make PYTHON=python3.12 install"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH_ARGS) torch
	$(PIP) -e '.[dev,all]'
	@touch $(STAMP)

quickstart: install  ## GAD beside its baseline on a world that can be checked; a few minutes
	$(BIN)/stillroom run quickstart

test: install  ## all tests, the slow ones included
	$(PYTEST) -m "not network"

check: lint  ## format, rules, types, layers and the fast tests: before every commit
	$(PYTEST) -m "not slow and not network"

lint: install  ## the part of check that runs nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

numerics: install  ## what must not change a number, by how much it does: one table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m numerics

bench: install  ## time and memory beside other libraries, into docs/benchmarks; hours
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

docs: install  ## write docs/methods anew from the classes
	$(BIN)/python -m stillroom.reports.pages docs/methods

wheel: install  ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
