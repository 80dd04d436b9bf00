# Everything installs into ./.venv. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.SUFFIXES:

PYTHON ?= python3
DIR ?= .hansa
NODES ?=
DATA ?=
NODE ?=
ARGS ?=

VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
FEDERATION := $(BIN)/python -m deploy.local.federation
SUITES := $(wildcard tests/unit tests/property tests/contract tests/architecture tests/simulation)
SOURCES := proto coordinator node_agent tests deploy

export PYTHON

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# --- set-up -----------------------------------------------------------------

$(READY): requirements-uv.lock requirements.lock pyproject.toml deploy/local/make-venv.sh
	@deploy/local/make-venv.sh

.PHONY: venv
venv: $(READY) ## make ./.venv with the locked versions

.PHONY: system-demo
system-demo:
	@deploy/local/system-packages.sh demo

.PHONY: system
system: ## install the Debian packages that are missing
	@deploy/local/system-packages.sh test

# --- a federation on this machine ---------------------------------------------

.PHONY: demo
demo: system-demo $(READY) ## four countries answer one question; about two minutes
	@$(BIN)/python -m deploy.local.demo

.PHONY: up
up: system-demo $(READY) ## start a federation: [DIR=.hansa] [NODES=GB,FI,ES,IT] [DATA=folder]
	@$(FEDERATION) up --dir "$(DIR)" $(if $(NODES),--nodes "$(NODES)") $(if $(DATA),--data "$(DATA)")

.PHONY: down
down: $(READY) ## stop exactly what `make up` started: [DIR=.hansa]
	@$(FEDERATION) down --dir "$(DIR)"

.PHONY: node-restart
node-restart: $(READY) ## start a killed agent again: NODE=FI [DIR=.hansa]
	@$(FEDERATION) node-restart --dir "$(DIR)" --node "$(NODE)"

# --- checks -------------------------------------------------------------------

.PHONY: lint
lint: $(READY) ## ruff, mypy --strict, import rules, stubs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

.PHONY: test
test: system $(READY) lint ## the whole gate, on two cores; a file's tests stay together
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-fast
test-fast: $(READY) ## the quick suites, on two cores, with fewer examples of each property
	HYPOTHESIS_PROFILE=fast $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(SUITES) $(ARGS)

.PHONY: soak
soak: $(READY) ## a million faults in the simulator, on all cores; report in .cache/soak [ARGS="--faults 100000"]
	@nice $(BIN)/python -m tests.simulation $(ARGS)

.PHONY: bench
bench: system $(READY) ## measure, as ratios in one run; writes nothing but its report
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: mutation
mutation: $(READY) ## take each defence out and see that its test fails; ARGS=ids for some
	$(BIN)/python -m tests.mutation $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## feed garbage to every parser: [FUZZ_SECONDS=60] each; crashes in .cache/fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

# --- upkeep -------------------------------------------------------------------

.PHONY: format
format: $(READY) ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: proto
proto: $(READY) ## generate the stubs of proto/hansa/v1 anew
	$(BIN)/python proto/generate.py

LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11

.PHONY: lock
lock: $(READY) ## resolve both locks anew (`ARGS=--upgrade` for newer versions)
	$(LOCK) --all-extras pyproject.toml -o requirements.lock $(ARGS)
	echo uv | $(LOCK) --no-annotate - -o requirements-uv.lock $(ARGS)

.PHONY: clean
clean: ## remove caches and ./.venv; state folders of federations stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* dist
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
