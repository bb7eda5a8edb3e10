# Two commands do all the set-up on a fresh machine: make serve, make test.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 7860

.PHONY: serve test test-all lint docs bench clean

serve: .venv/.serve
	$(BIN)/augself serve --demo --port $(PORT)

# Files of tests side by side, one a core; what a session shares is made once a core.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: .venv/.all lint
	$(PYTEST)

# One after the other: some of the slow trials measure memory and seconds.
test-all: .venv/.all lint
	$(BIN)/pip install -e ".[fleet]"
	$(BIN)/python -m pytest -m "slow or not slow"

lint: .venv/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in site/.
docs: .venv/.all
	$(BIN)/mkdocs build --strict

# Beside other tools; hours on a quiet machine. QUICK=1 only tries it, in minutes.
bench: .venv/.all
	$(BIN)/python benchmarks/bench.py $(if $(QUICK),--quick)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.serve: .venv/bin/python pyproject.toml
	$(BIN)/pip install -e ".[demo]"
	touch $@

.venv/.all: .venv/bin/python pyproject.toml
	$(BIN)/pip install -e ".[all]"
	touch $@ .venv/.serve

clean:
	rm -rf .venv dist site bench .pytest_cache .ruff_cache .mypy_cache
