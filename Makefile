# Every target sets up what it needs in .venv: nothing is installed outside this folder.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-all lint format bench clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/ready-dev ## Everything for working on Paceline

demo: $(VENV)/ready ## Ask the shipped pair a question, with drafting off and on
	$(BIN)/paceline demo

test: $(VENV)/ready-dev ## All tests that run on every push
	$(BIN)/pytest -m "not slow"

test-all: $(VENV)/ready-dev ## The full matrices too: about half an hour
	$(BIN)/pytest

lint: $(VENV)/ready-dev ## Format, style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready-dev ## Format the code in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/ready ## Speed with drafting on against off, by kind of prompt
	$(BIN)/paceline bench --compare off,2,4

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paceline needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

$(VENV)/ready: pyproject.toml | $(VENV)/bin/python
	@echo "installing Paceline and PyTorch into $(VENV) (a few minutes, once)"
	$(PIP) $(TORCH)
	$(PIP) --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) --group dev
	@touch $@
