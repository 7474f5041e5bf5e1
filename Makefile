# SPDX-License-Identifier: Apache-2.0
# Every target sets up .venv by itself; a second call reuses it until pyproject.toml or the constraints change.

# Python 3.10 - 3.12 that .venv is made with
PYTHON ?= python3
# passed on to `tempo-verl quickstart` or pytest
ARGS ?=
# test processes at a time
WORKERS ?= 2

BIN := .venv/bin
CONSTRAINTS := constraints/cpu.txt
INSTALLED := .venv/.installed
VLLM_INSTALLED := .venv-vllm/.installed
VLLM_FILES := $(wildcard tests/vllm_cpu/requirements.txt tests/vllm_cpu/stub/*)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: quickstart test test-all test-vllm docs bench watch-verl lint format setup clean help

# nothing here is to reach for a model hub or a tracking server
quickstart test test-all test-vllm bench: export HF_HUB_OFFLINE = 1
quickstart test test-all test-vllm bench: export WANDB_MODE = offline

quickstart: $(INSTALLED) ## tiny task, stage 0, TEMPO, evaluation and report on a CPU (ARGS=--fast: a few rounds only)
	@$(BIN)/tempo-verl quickstart $(ARGS)

test: $(INSTALLED) ## the tests (ARGS=tests/unit: only those; WORKERS=1: one after the other)
	@$(PYTEST) -m "not slow and not vllm and not gpu" $(ARGS)

test-all: $(INSTALLED) ## all tests that need no accelerator: the miniature, every recipe, reports in a browser as well
	@$(PYTEST) -m "not vllm and not gpu" $(ARGS)

test-vllm: $(VLLM_INSTALLED) ## training rounds with vLLM's CPU build, in .venv-vllm
	@.venv-vllm/bin/python -m pytest -m vllm $(ARGS)

docs: $(INSTALLED) ## the documentation site, in build/docs
	@$(PIP_INSTALL) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

# one thread, as the trainings it starts: what is measured is work, not cores
bench: export OMP_NUM_THREADS = 1
bench: $(INSTALLED) ## what TEMPO costs, into benchmarks/results.md (ARGS="--only rounds,driver", ARGS=--fast); nothing else should run
	@$(BIN)/python benchmarks/bench.py $(ARGS)

watch-verl: $(INSTALLED) ## the contract tests against verl's newest release and main (ARGS="verl==0.9.0 FOLDER": against these)
	@$(BIN)/python tests/contract/watch.py $(ARGS)

lint: $(INSTALLED) ## ruff (rules and format) and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(INSTALLED) ## let ruff repair what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

setup: $(INSTALLED) ## only make .venv

clean: ## remove environments, caches and builds; runs/ stays
	rm -rf .venv .venv-vllm build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tempo_verl tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'PYTHON=python3.12 chooses the interpreter. Where the default torch comes with CUDA, point PIP_EXTRA_INDEX_URL at'
	@echo 'an index that has its CPU build, which is gigabytes smaller.'

# torch first, so that the build in place is the one the rest is resolved against
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	@echo "Installing tempo-verl and what it needs into .venv; the first time this takes a few minutes."
	@$(PIP_INSTALL) torch==2.13.0
	@$(PIP_INSTALL) -e '.[cpu,math,dev]'
	@touch $@

# All of .venv, and on top of it vLLM's CPU build, which .venv itself is to do without
$(VLLM_INSTALLED): $(INSTALLED) $(VLLM_FILES)
	@echo "Installing vLLM's CPU build into .venv-vllm."
	@$(BIN)/python -m venv --clear .venv-vllm
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(echo .venv-vllm/lib/python*/site-packages)/venv.pth"
	@.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r tests/vllm_cpu/requirements.txt \
		./tests/vllm_cpu/stub
	@touch $@

# pip is the last thing that venv installs: an interrupted or failed creation is begun anew
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || \
		{ echo "tempo-verl needs Python >=3.10,<3.13; $(PYTHON) is $$(command -v $(PYTHON) >/dev/null && $(PYTHON) -V 2>&1 || echo not there)." \
		"Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
