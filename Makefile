.PHONY: setup test lint bench docs site

PYTHON ?= python3
BIN := .venv/bin

setup:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[test,lint,docs]'

test:
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench:
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/llvid bench -m demo --quick

docs:
	$(BIN)/python tests/command_reference.py

site:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
