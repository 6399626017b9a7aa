# Every target builds .venv first when it is missing or older than what describes it.
# A fresh machine needs make and Python 3.11 (or 3.12) with venv, nothing else.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules

# The first candidate that starts, is of a supported version and has venv. `make PYTHON=...` overrides.
SUPPORTED   := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON      ?= $(shell for p in python3.11 python3 python3.12; do $$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV        := .venv
BIN         := $(VENV)/bin
RUN         := $(BIN)/python
STAMP       := $(VENV)/.built
PIP_TOOLS   := pip-tools==7.6.2
ARGS        ?=
SOURCES     := keyserver replication kv verifier tools tests

.PHONY: help demo test check bench sim soak lock proto fmt wheel clean

help:
	@echo "make demo | test | check | bench | sim | soak | lock | proto | fmt | wheel | clean      (ARGS=... is passed on)"

$(STAMP): pyproject.toml requirements/test.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 with venv found; install one or give PYTHON=..." >&2; exit 2; }
	@$(RUN) -c '$(SUPPORTED)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --require-hashes --requirement requirements/test.txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/keyserver demo $(ARGS)

test: $(STAMP)
	@$(RUN) -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	PYTHONPATH=proto:. $(BIN)/lint-imports
	PYTHONPATH=tools $(RUN) -P tools/tidy.py
	$(RUN) -P tools/gen_proto.py --check

bench: $(STAMP)
	@PYTHONPATH=tools:tests $(RUN) -P tools/bench.py $(ARGS)

sim: $(STAMP)
	@PYTHONPATH=tests:proto:. $(RUN) -P tools/simulate.py $(ARGS)

soak: $(STAMP)
	@E2EKS_SOAK=20 $(RUN) -m pytest -m "" $(ARGS)

proto: $(STAMP)
	$(RUN) -P tools/gen_proto.py

fmt: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

wheel: $(STAMP)
	$(RUN) -m build --no-isolation --wheel --outdir dist .

# The locks are made by a tool of their own environment: it needs its own pip, which no other target should get.
COMPILE := CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet --resolver=backtracking \
	--generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	--strip-extras --allow-unsafe $(ARGS)
lock:
	@test -x .venv-lock/bin/pip-compile || { $(PYTHON) -m venv --clear .venv-lock && .venv-lock/bin/python -m pip install --quiet "$(PIP_TOOLS)"; }
	$(COMPILE) --extra server --extra test --output-file requirements/test.txt pyproject.toml
	$(COMPILE) --extra server --constraint requirements/test.txt --output-file requirements/server.txt pyproject.toml
	$(COMPILE) --extra verifier --constraint requirements/test.txt --output-file requirements/verifier.txt pyproject.toml
	$(COMPILE) --constraint requirements/test.txt --output-file requirements/client.txt pyproject.toml

clean:
	rm -rf $(VENV) .venv-lock build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find $(SOURCES) proto -name __pycache__ -type d -prune -exec rm -rf {} +
