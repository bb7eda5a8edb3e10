# Two commands do all the set-up on a fresh machine: make serve, make test.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 7860

.PHONY: serve test test-all lint docs bench clean

serve: .venv/.serve
	$(BIN)/augself serve --demo --port $(PORT)

test: .venv/.all lint
	$(BIN)/python -m pytest

test-all: .venv/.all lint
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
