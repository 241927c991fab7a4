# `make test` and `make run` work on a fresh machine: they make their own virtual environment.
SHELL := /bin/bash
export PATH := $(or $(PATH),/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# What is compiled is kept, pytest's own form of the tests too: each worker of a run would compile it all again.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait for brokers, limits and kills more than they compute.
WORKERS := 8

.PHONY: run test check lint prove bench lock clean

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV) || { apt-get install -y python3-venv || sudo -n apt-get install -y python3-venv; $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

## The sandbox: OSCAR, Kafka, S3, dCache and the bridge between them. ARGS=--once ends by itself.
run: $(VENV)/.ready
	$(BIN)/oscar-bridge sandbox run -c config/sandbox.yaml $(ARGS)

## Everything CI runs.
test: $(VENV)/.ready
	$(MAKE) -j2 --output-sync check $(VENV)/.compiled
	$(BIN)/python -m tests.servers.debian
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "not prove" $(ARGS)

# Failures are told by the run that follows.
$(VENV)/.compiled: $(VENV)/.ready $(shell find bridge tests -name '*.py')
	@$(BIN)/pytest -qq --collect-only > /dev/null 2>&1; touch $@

## Static checks: lint, format, types, the rules of who imports whom.
check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## The long fault runs behind the promises in the README.
prove: $(VENV)/.ready
	$(BIN)/python -m tests.servers.debian
	TEST_SEED=$${TEST_SEED:-$$RANDOM} $(BIN)/pytest -q -n 4 --dist worksteal -m prove $(ARGS)

## What an event costs: docs/performance.md.
bench: $(VENV)/.ready
	$(BIN)/python -m bench $(ARGS)

## Re-resolve the locked dependencies.
lock: $(VENV)/.ready
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
