# Everything a fresh machine with Python 3.11+, pip and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test check format install clean
help:
	@echo "make demo    install, run three simulated hospitals, print where the report is"
	@echo "make test    install and run the tests (SYNTHWARD_DATA: folder of real images)"
	@echo "make check   lint, types, import direction"
	@echo "make format  reformat the sources"
	@echo "make clean   remove what these commands made"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray,dev]"
	@touch $@

install: $(INSTALLED)

demo: install
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
