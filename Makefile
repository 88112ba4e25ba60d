# Every target does its own set-up: nothing but Python 3.11 or newer, git and make is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

PROOF := crashes power disk fleet states api bundles wire mutants

.PHONY: help setup demo test replay prove $(PROOF:%=prove-%) prove-engine prove-invariants prove-leases bench-engine bench-spread bench-deltas vectors-archive check lint types imports lock wheels clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: .venv/ready ## make .venv: uv through pip, the locked requirements, the three packages editable

.venv/ready: requirements.lock pyproject.toml shared/pyproject.toml client/pyproject.toml server/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tallystick needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e shared -e client -e server
	@touch $@

demo: .venv/ready ## the main job in under a minute: three tills, no network, one SIGKILL, nothing lost
	@$(BIN)/python -m benchmarks.demo

test: .venv/ready ## run the tests, on all cores (JOBS=0: in one process)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

replay: .venv/ready ## half a year of real redemptions through real tills that are offline for days (ARGS="--offline-days 14")
	@$(BIN)/python -m benchmarks.replay $(ARGS)

prove: .venv/ready ## the rows of docs/explanation/proof.md that were not run for this state of the code, 40 minutes each
	@$(BIN)/python -m tests.proof missing $(ARGS)

# ARGS="--count 200" for less, "--seed 2", "--seed 1 --case 7" for one case again, "--control" for the negative controls
prove-crashes: ## a till killed at every n-th system call that touches the disk: 10,000 kills
prove-power: ## power cuts: unsynced writes dropped, reordered or torn: 50,000 disks
prove-disk: ## disk errors and full disks at every system call: 2,000
prove-fleet: ## simulated fleets under every fault there is: 100,000 device-days
prove-states: ## client and server against an exact model: 500,000 steps
prove-api: ## the whole API under generated requests: 50,000
prove-bundles: ## everything that is signed, changed: a million mutations, none accepted
prove-wire: ## a line that breaks in every way: 5,000 faults
prove-mutants: ## engine, trust, journal and ledger, changed: does a test notice?
$(PROOF:%=prove-%): prove-%: .venv/ready
	@$(BIN)/python -m tests.proof $* $(ARGS)

prove-engine: .venv/ready ## the engine against its oracle: a million seeded cases, 50,000 by hypothesis (ARGS="--count 20000")
	@$(BIN)/python -m tests.shared.prove $(or $(ARGS),--count 1000000 --seed 1 --workers 2)
	@TALLYSTICK_EXAMPLES=50000 $(BIN)/python -m pytest -q tests/shared/test_oracle.py -k hypothesis
	@TALLYSTICK_EXAMPLES=20000 $(BIN)/python -m pytest -q tests/shared/test_fuzz.py

prove-leases: .venv/ready ## everything that can happen to the leases of one voucher, and what breaks without each rule
	@$(BIN)/python -m tests.simulation.lease_search $(ARGS)

prove-invariants: .venv/ready ## take away each line that upholds an invariant, and see its test fail
	@$(BIN)/python -m tests.simulation.breaking

bench-engine: .venv/ready ## what the engine costs, as ratios: against plain Python, and as orders and vouchers grow
	@$(BIN)/python -m benchmarks.engine

bench-spread: .venv/ready ## how 10,000 tills come back after an outage, against a naive client (ARGS="--tills 1000")
	@$(BIN)/python -m benchmarks.spread $(ARGS)

bench-deltas: .venv/ready ## what one changed voucher costs server and till, next to the snapshot of 100,000 (ARGS="--vouchers 20000")
	@$(BIN)/python -m benchmarks.deltas $(ARGS)

vectors-archive: .venv/ready ## dist/tallystick-vectors-*.zip, for whoever writes a client in another language
	@$(BIN)/python -m tests.vectors.archive dist

check: lint types imports ## ruff, mypy --strict and the import contracts

lint: .venv/ready ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/ready ## mypy --strict
	@$(BIN)/mypy

imports: .venv/ready ## import-linter
	@$(BIN)/lint-imports

wheels: .venv/ready ## build the three wheels into dist/
	@for p in shared client server; do $(BIN)/python -m build --quiet --no-isolation --wheel --outdir dist $$p; done; ls dist

lock: .venv/ready ## renew requirements.lock (hashes, no addresses)
	@$(BIN)/uv lock --quiet --upgrade
	@$(BIN)/uv export --quiet --all-packages --no-emit-workspace --all-extras --all-groups --no-header --format requirements.txt -o requirements.lock

clean: ## remove what the targets made
	@rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
