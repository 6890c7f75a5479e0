# make setup | run | view | test | test-fast | lint | mutants.  Python 3.11; override with PYTHON=…
PYTHON ?= python3.11
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
# PyTorch's CPU builds are not on PyPI: where pip does not find one by itself, its own index is asked.
TORCH_INDEX := https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed

.PHONY: setup run view test test-fast lint mutants

setup: $(STAMP)

$(STAMP): requirements-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-cpu.txt || $(PIP) --extra-index-url $(TORCH_INDEX) -r requirements-cpu.txt
	$(PIP) --no-build-isolation -e .
	touch $@

run: setup
	$(VENV)/bin/python launch/run.py model=medical

view: setup
	$(VENV)/bin/python launch/view.py

# Two files at a time, a core for each; the longest first (tests/conftest.py).
test: setup
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What needs no model and no engine.
test-fast: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/unit -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# Mistakes that the tests must catch, one by one.
mutants: setup
	$(VENV)/bin/python tests/mutants.py
