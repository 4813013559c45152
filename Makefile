# `make generate` and `make test` work on a fresh clone with nothing but Python 3.11+; `make help` lists the rest.
#
# PYTHON=python3.12        the interpreter that makes the virtual environment
# TORCH_INDEX=<address>    where PyTorch comes from, for example PyTorch's own CPU or CUDA index
# ARGS="..."               more options for `dattn generate`, `dattn evaluate`, `dattn bench` (of `make gpu`) or pytest
# WHAT="gpu model"         which benchmarks `make gpu` runs, a sweep first: the others then use the rows that it found
# TRITON=3.7.1             another version than the oldest for `make oldest`

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPES  := build/types
SOURCE := pyproject.toml README.md LICENSE dattn kernels pipelines apps
TORCH  := $(shell grep '^torch==' constraints.txt)
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4
TRITON := $(shell sed -n 's/.*"triton>=\([0-9.]*\).*/\1/p' pyproject.toml).0
OLDER  := 0.41.0
GPU    := assets/benchmarks/gpu
GPU_IN := tests/kernels/test_gpu.py tests/kernels/test_interpreted_scores.py tests/test_plugin_compile.py \
          tests/control/test_fused.py tests/lora/test_training.py
WHAT   ?= sweep gpu selection choosing model cost
WHEEL  := pip wheel --quiet --no-deps --no-build-isolation

.DEFAULT_GOAL := help
.PHONY: help install generate test lint format types oldest older gpu evaluate screenshots natten clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## the virtual environment with PyTorch, Diffusers and dattn

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dattn needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (once): PyTorch, Diffusers and dattn"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet "setuptools>=77" wheel
	@$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

generate: $(STAMP)  ## a video from the demo model with sparse and with stock attention, into outputs/
	@$(BIN)/dattn generate $(ARGS)

test: $(STAMP)  ## the test suite
	@OMP_NUM_THREADS=1 $(PYTEST) --dist loadfile $(ARGS)
	$(if $(ARGS),,@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) $(wildcard tests/kernels/test_interpreted*.py))

lint: $(STAMP)  ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP)  ## mypy on an unpacked wheel, the only place where it sees dattn.kernels
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/source $(TYPES)/wheel
	@cp -R $(SOURCE) $(TYPES)/source
	@$(BIN)/$(WHEEL) --wheel-dir $(TYPES)/wheel ./$(TYPES)/source
	@$(BIN)/python -m zipfile -e $(TYPES)/wheel/*.whl $(TYPES)/unpacked
	@cd $(TYPES)/unpacked && ../../../$(BIN)/mypy --config-file ../../../pyproject.toml \
	  --cache-dir ../../../.mypy_cache dattn

evaluate: $(STAMP)  ## the quality table of the demo model (long; goes on where it stopped)
	@$(BIN)/dattn evaluate $(ARGS)

oldest: $(STAMP)  ## the kernels compiled with the oldest Triton that dattn supports
	@$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton "triton==$(TRITON)"
	@PYTHONPATH=build/triton TRITON_CACHE_DIR=build/triton-cache OMP_NUM_THREADS=1 $(PYTEST) tests/kernels/test_compiled.py

older: $(STAMP)  ## what we rely on in Diffusers, with the release before the one that is installed
	@$(BIN)/pip install --quiet --no-deps --upgrade --target build/diffusers "diffusers==$(OLDER)"
	@PYTHONPATH=build/diffusers OMP_NUM_THREADS=1 $(PYTEST) tests/test_stand_in.py tests/test_plugin_diffusers.py

gpu: $(STAMP)  ## all that needs an NVIDIA GPU: its tests, then its benchmarks, into assets/benchmarks/gpu
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu: PyTorch sees no CUDA device here")'
	@failed=; rows=; \
	$(BIN)/python -P -m pytest -q -m gpu --continue-on-collection-errors $(GPU_IN) || failed=" tests"; \
	for what in $(WHAT); do \
	  echo "== dattn bench $$what"; \
	  $(BIN)/python -P -m dattn.apps.cli bench $$what $(ARGS) $$rows --output $(GPU)/$$what.json || failed="$$failed $$what"; \
	  if test $$what = sweep -a -f $(GPU)/sweep.json; then rows="--rows $(GPU)/sweep.json"; fi; \
	done; \
	test -z "$$failed" || { echo "make gpu, FAILED:$$failed" >&2; exit 1; }

screenshots: $(STAMP)  ## pictures of the demo's tabs (needs Playwright and Chromium)
	@$(BIN)/python -m dattn.apps.demo.screenshots assets/pictures/demo $(ARGS)

natten: $(STAMP)  ## NATTEN, which the tests then compare Neighborhood with (compiles for a while)
	@$(BIN)/pip install --quiet cmake ninja
	@$(BIN)/pip install --no-build-isolation natten

clean:  ## everything that was made here, outputs/ excepted
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
