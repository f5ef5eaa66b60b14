# Every target makes what it needs in .venv; nothing is fetched but Python packages.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DECLARED := setup.cfg pyproject.toml  # what is installed is decided here, so a change installs again

.PHONY: help demo test dev lint bench docs clean

help:
	@echo "make demo    train, sample, evaluate and export a GAN of digits (about two minutes)"
	@echo "make test    run the tests, JOBS=2 files at a time (ARGS='-k presets' passes options to pytest)"
	@echo "make dev     development tools and the links that type checkers need"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   timings against PyTorch and stock Keras (benchmarks/RESULTS.md)"
	@echo "make docs    write docs/cli.md from the commands"
	@echo "make clean   remove .venv, caches and the demo"

# The install is editable: an edited preset or source file is used without installing again.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(DECLARED) | $(BIN)/python
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(DECLARED) | $(BIN)/python
	$(PIP) install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(DECLARED) | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

demo: $(VENV)/.installed
	rm -rf runs/demo saved_models/demo
	$(BIN)/gentf train gan-digits --run runs/demo
	$(BIN)/gentf sample runs/demo -n 64 --out runs/demo/demo.png
	$(BIN)/gentf evaluate runs/demo
	$(BIN)/gentf export runs/demo --to saved_models/demo
	$(BIN)/gentf sample saved_models/demo -n 64 --out runs/demo/demo-export.png
	cmp runs/demo/demo.png runs/demo/demo-export.png
	@echo "Samples: runs/demo/demo.png (the run and its export draw the same bytes). To serve: docs/serving.md"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

dev: $(VENV)/.installed-dev
	ln -sfn ../kernels gentf/kernels
	ln -sfn ../cli gentf/cli

lint: dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	rm -rf runs/demo saved_models/demo
