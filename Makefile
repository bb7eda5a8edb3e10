# Two commands do all the set-up on a fresh machine: make serve, make test.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 7860

.PHONY: serve test test-all lint clean

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

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.serve: .venv/bin/python pyproject.toml
	$(BIN)/pip install -e ".[demo]"
	touch $@

.venv/.all: .venv/bin/python pyproject.toml
	$(BIN)/pip install -e ".[all]"
	touch $@ .venv/.serve

clean:
	rm -rf .venv dist .pytest_cache .ruff_cache .mypy_cache
