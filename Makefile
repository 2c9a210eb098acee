# Everything a fresh machine with Python 3.11+, pip and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# What is installed so far: what a run needs; then Ray, the tests' and the checks' tools.
RUNTIME := $(VENV)/.runtime
WHOLE := $(VENV)/.whole

.PHONY: help demo test check format install clean
help:
	@echo "make demo     install what a run needs, run three simulated hospitals, print where the report is"
	@echo "make install  install everything: also Ray, and the tools of the tests and checks"
	@echo "make test     install everything and run the tests (SYNTHWARD_DATA: folder of real images)"
	@echo "make check    install everything; lint, types, import direction"
	@echo "make format   reformat the sources"
	@echo "make clean    remove the environment, caches and builds; runs/ stays"

$(RUNTIME): pyproject.toml constraints.txt
	@echo "Installing the libraries that a run needs into $(VENV), once: most of it is PyTorch, up to"
	@echo "4 GB with its GPU libraries. This takes a few minutes, more on a slow line. pip reports:"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(WHOLE): $(RUNTIME)
	@echo "Installing Ray and the tools of the tests and checks into $(VENV), once: a minute or two."
	$(PIP) --editable ".[ray,dev]"
	@touch $@

install: $(WHOLE)

demo: $(RUNTIME)
	@echo "Running the demo: a few minutes on two cores."
	$(BIN)/synth-sim run phantom-release

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
