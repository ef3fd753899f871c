# make smoke       install, measure five backends on the demo model, draw the plots
# make test        install, lint, types, and every test but the long loops
# make test-all    those, too
# make docs        the documentation as a site, links checked
# make audit       known vulnerabilities of the pinned packages
# make bench       our INT4 against other kernels on this CPU
# make bench-gpu   the same on a CUDA GPU, by PYTHON and what is installed there
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share what they measured, so they stay in one process; tests/conftest.py says which files begin.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)
STAMP := $(VENV)/installed
LLAMA_CPP := $(VENV)/llama-cpp
QUANTO := $(VENV)/quanto
AUTOAWQ := build/autoawq
# Also inside build environments, where a plain -c does not reach: gptqmodel builds from source.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Otherwise every worker compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

# Where benchmarks leave their tables and plots.
OUT ?= results/bench

.PHONY: help setup env-autoawq smoke test test-all lint docs audit bench bench-gpu gpu-wheels clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) $(if $(filter all,$(EXTRAS)),$(LLAMA_CPP))  ## a virtual environment; EXTRAS=all: with llama.cpp, too

$(STAMP): pyproject.toml constraints.txt $(wildcard qbench/int4/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qbench needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[all,dev]'
	touch $@

# Without its parts for images, which are most of the compiling.
$(LLAMA_CPP): $(STAMP)
	@echo "compiling llama.cpp, once, for some minutes"
	CMAKE_ARGS="-DLLAVA_BUILD=OFF $(CMAKE_ARGS)" $(BIN)/pip install -q -e '.[gguf]'
	touch $@

# By its first use, which would otherwise be that of a test.
$(QUANTO): $(STAMP)
	@echo "compiling optimum-quanto's kernel for CPUs, once, for about a minute"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c \
	'import torch, optimum.quanto; torch.ops.quanto.unpack(torch.zeros(1, dtype=torch.uint8), 4)'
	touch $@

env-autoawq: $(AUTOAWQ)/installed  ## build/autoawq/bin/python, in which AutoAWQ quantizes (120 MB beside .venv)

# Its transformers is older than ours; torch and the rest are those of .venv, which comes behind in the path.
$(AUTOAWQ)/installed: $(STAMP) requirements-autoawq.txt
	$(BIN)/python -m venv --clear --without-pip $(AUTOAWQ)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	> $$(echo $(AUTOAWQ)/lib/python3.*/site-packages)/shared.pth
	PIP_CONSTRAINT= $(BIN)/pip --python $(AUTOAWQ)/bin/python install -q --no-deps --ignore-installed \
	-r requirements-autoawq.txt
	touch $@

smoke: setup  ## five backends on the demo model: a table and plots (under 8 minutes on 2 cores with AMX)
	$(BIN)/qbench run configs/smoke.yaml
	$(BIN)/qbench plot results/smoke

lint: setup  ## ruff, mypy and the borders between folders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint $(LLAMA_CPP) $(QUANTO)  ## lint, types, and every test but the long loops (8 to 15 minutes on 2 cores)
	$(PYTEST) -m 'not long'

test-all: test $(AUTOAWQ)/installed  ## `make test`, and then the loops of minutes
	$(PYTEST) -m long

docs:  ## the documentation as a site in site/, every link checked
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install -q $$($(PYTHON) -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	build/docs/bin/mkdocs build

audit:  ## known vulnerabilities of the packages in constraints.txt, by the package index's word (needs the network)
	$(PYTHON) -m venv build/audit
	PIP_CONSTRAINT= build/audit/bin/pip install -q pip-audit
	build/audit/bin/pip-audit --no-deps --disable-pip --progress-spinner off -r constraints.txt

bench: setup  ## our INT4 against other kernels and backends on this CPU, as ratios (half an hour on 2 cores; OUT=folder)
	$(BIN)/python benchmarks/startup.py --out $(OUT)
	$(BIN)/python benchmarks/int4_linear.py --out $(OUT)
	$(BIN)/python benchmarks/int4_accuracy.py --out $(OUT)
	$(BIN)/python benchmarks/linears.py --out $(OUT)
	$(BIN)/qbench run configs/tinyllama-shape.yaml --results $(OUT)
	$(BIN)/qbench plot $(OUT)/tinyllama-shape --out $(OUT)/plots

bench-gpu:  ## a quarter of an hour on a CUDA GPU, without network or .venv (PYTHON=python3 OUT=folder STEPS="check tune …")
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PYTHON) benchmarks/gpu.py $(STEPS) --out $(OUT)

gpu-wheels:  ## ./wheels: what a bare GPU machine lacks for bench-gpu; PYTHON is one of its version
	$(PYTHON) benchmarks/gpu_wheels.py wheels

clean:  ## remove what was made, but no published results
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis results/smoke plots/smoke
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
