# Shoal. `make` lists what you can do.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Shoal needs Python 3.11 or newer with venv: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## make the virtual environment

.PHONY: fmt
fmt: setup ## format the code and mend what can be mended
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

.PHONY: lint
lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

.PHONY: check
check: lint ## lint, unit and simulation tests: no root needed
	$(BIN)/pytest -q -n auto tests/unit tests/sim

.PHONY: packages
packages: ## install what the tests and the demo take from Debian (root)
	@./tests/support/packages.sh

.PHONY: test
test: packages lint ## everything this machine allows; says what it left out and why
	$(BIN)/pytest -q -rs -n auto tests/unit tests/sim
	$(BIN)/pytest -q -rs tests/kernel tests/integration tests/compat

.PHONY: sim
sim: setup ## many more seeds of the simulations: make sim SEEDS=2000, make sim SEED=7 TEST=stores
	SEEDS=$${SEEDS:-2000} $(BIN)/pytest -q tests/sim -k "$${TEST:-test}"

.PHONY: demo
demo: packages setup ## a three-node cluster on this computer, doing the main job
	@$(BIN)/python -m lab demo

.PHONY: lab
lab: packages setup ## the demo's cluster, left up to play with; `make lab-down` removes it
	@$(BIN)/python -m lab up
	@$(BIN)/python -m lab images --load >/dev/null && echo "Images on every machine: web:1 web:2"

.PHONY: lab-down
lab-down: setup ## remove the cluster of `make lab`
	@$(BIN)/python -m lab down

.PHONY: bench
bench: packages setup ## measure the main job
	@$(BIN)/python -m bench.main_job

.PHONY: bench-consensus
bench-consensus: setup ## measure log and store, beside etcd where it is installed
	@$(BIN)/python -m bench.consensus $(if $(shell command -v etcd),--peer etcd)
