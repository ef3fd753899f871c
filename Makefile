# make smoke   install, measure five backends on the demo model, draw the plots
# make test    install, lint, types, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Also inside build environments, where a plain -c does not reach: gptqmodel builds from source.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup smoke test lint bench clean

help:  ## these lines
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## a virtual environment with everything in it

$(STAMP): pyproject.toml constraints.txt $(wildcard qbench/int4/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qbench needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[all,dev]'
	touch $@

smoke: setup  ## five backends on the demo model: a table and four plots (under 8 minutes on 2 cores)
	$(BIN)/qbench run configs/smoke.yaml
	$(BIN)/qbench plot results/smoke

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, types, tests
	$(BIN)/pytest

bench: setup  ## our INT4 linear against torch's, as ratios
	$(BIN)/python benchmarks/int4_linear.py

clean:  ## remove what was made, but no published results
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis results/smoke plots/smoke
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
