# Two commands do all the set-up on a fresh machine: make serve, make test.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 7860
# ONNX Runtime for make serve: gpu (also runs on CPUs), cpu (smaller) or openvino. Their wheels hold the
# same files, so the others go first.
RUNTIME ?= gpu
WHEELS := gpu:onnxruntime-gpu cpu:onnxruntime openvino:onnxruntime-openvino
OTHERS = $(foreach wheel,$(filter-out $(RUNTIME):%,$(WHEELS)),$(lastword $(subst :, ,$(wheel))))

.PHONY: serve test test-all lint docs bench clean

serve: .venv/.serve-$(RUNTIME)
	$(BIN)/augself serve --demo --port $(PORT)

# Files of tests side by side; tests/conftest.py says how many.
test: .venv/.all lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# One after the other: some of the slow trials measure memory and seconds. Beside what is installed
# here they use nginx, caddy, npm and openssl, and say in the summary what was skipped without them.
test-all: .venv/.all lint
	$(BIN)/pip install -e ".[fleet]" langchain-openai litellm
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

.venv/.serve-$(RUNTIME): .venv/bin/python pyproject.toml
	$(BIN)/pip uninstall --yes $(OTHERS)
	$(BIN)/pip install -e ".[demo,$(RUNTIME)]"
	rm -f .venv/.serve-*
	touch $@

.venv/.all: .venv/bin/python pyproject.toml
	$(BIN)/pip uninstall --yes onnxruntime onnxruntime-openvino
	$(BIN)/pip install -e ".[all]"
	touch $@ .venv/.serve-gpu

clean:
	rm -rf .venv dist site bench .pytest_cache .ruff_cache .mypy_cache
