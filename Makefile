# Every target sets up what it needs in .venv: nothing is installed outside this folder.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CMAKE = $(shell command -v cmake || echo $(BIN)/cmake)
CTEST = $(shell command -v ctest || echo $(BIN)/ctest)
CONFIGURE = $(CMAKE) -S native -G Ninja
NATIVE := CMakeLists.txt native/CMakeLists.txt $(wildcard native/*.cc native/bindings/* native/kernels/* native/include/*/*)

.PHONY: help setup demo test test-native test-all judge sanitize lint format stub tables bench clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/ready-dev ## Everything for working on Paceline

demo: $(VENV)/ready ## Ask the shipped pair a question, with drafting off and on
	$(BIN)/paceline demo

test: $(VENV)/ready-dev test-native ## All tests that run on every push
	$(BIN)/pytest -m "not slow and not llama_cpp"

test-native: $(VENV)/ready-dev ## The tests of native/, for every instruction set of this processor
	$(CONFIGURE) -B build/native-tests
	$(CMAKE) --build build/native-tests
	$(CTEST) --test-dir build/native-tests --output-on-failure

test-all: $(VENV)/ready-dev test-native sanitize ## The full matrices too: about half an hour
	$(BIN)/pytest -m "not llama_cpp"

judge: $(VENV)/ready-dev ## llama.cpp reads our files and must agree: LLAMA_CPP_PYTHON=python
	LLAMA_CPP_PYTHON=$(LLAMA_CPP_PYTHON) $(BIN)/pytest -m llama_cpp

sanitize: $(VENV)/ready-dev ## The native tests under sanitizers: address, undefined, thread
	$(CONFIGURE) -B build/sanitize-address -DPACELINE_SANITIZE=address,undefined
	$(CMAKE) --build build/sanitize-address
	$(CTEST) --test-dir build/sanitize-address --output-on-failure
	$(CONFIGURE) -B build/sanitize-thread -DPACELINE_SANITIZE=thread
	$(CMAKE) --build build/sanitize-thread --target thread_pool_test
	$(CTEST) --test-dir build/sanitize-thread --output-on-failure --tests-regex '^thread_pool$$'

lint: $(VENV)/ready-dev ## Format, style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready-dev ## Format the code in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

stub: $(VENV)/ready-dev ## Write the types of the extension module, after a change of native/bindings/
	$(BIN)/python -m nanobind.stubgen -q -m paceline._native -o src/paceline/_native.pyi
	$(BIN)/ruff check --quiet --fix --exit-zero src/paceline/_native.pyi
	$(BIN)/ruff format --quiet src/paceline/_native.pyi

tables: $(VENV)/bin/python ## Write the measured figures of the documents, after new results
	$(BIN)/python benchmarks/tables.py

bench: $(VENV)/ready ## Speed with drafting on against off, by kind of prompt
	$(BIN)/paceline bench --compare off,2,4

clean: ## Remove the virtual environment, what was built, and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paceline needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

$(VENV)/ready: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	@echo "building Paceline and installing it into $(VENV) (a minute or two, once)"
	$(PIP) --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "installing PyTorch and the tools into $(VENV) (a few minutes, once)"
	$(PIP) $(TORCH)
	$(PIP) --group dev
	@command -v cmake > /dev/null || $(PIP) cmake
	@command -v ninja > /dev/null || $(PIP) ninja
	@touch $@
