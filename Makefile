# Every target is safe to run in a fresh clone: it makes the environment that it needs first.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEMO := .venv/.demo
DEV := .venv/.dev
# Real servers for tests and benchmarks come from the distribution's packages.
APT := sh -c 'apt-get update -q > /dev/null; DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$$@" > /dev/null' apt

# What tests and benchmarks need beside Python: a peer, the JavaScript client's engine, a C compiler, a certificate maker,
# and what operators have beside us. Consul is in no newer Debian: it comes into the environment.
SERVERS := for need in redis-server:redis-server node:nodejs npm:npm cc:gcc cc:libc6-dev openssl:openssl \
	haproxy:haproxy prometheus:prometheus wrk:wrk; do \
	command -v $${need%%:*} > /dev/null || $(APT) $${need\#*:}; done; \
	test -n "$$ROADSTEAD_CONSUL" || command -v consul > /dev/null || deploy/consul/install.sh .venv

# What `make check` tests: cores, and the house rules.
CHECKED := tests/tidy tests/base tests/*/core
UNCHECKED := $(addprefix --ignore-glob=,$(CHECKED))

# Tests of shells and processes wait half of their time: so there are more of them at once than cores.
CORES := $(shell getconf _NPROCESSORS_ONLN)
WORKERS := $(shell expr $(CORES) \* 3 / 2)

# What fails beside others is run once more alone: two cores are not always in time for all of them at once. What fails
# alone fails. Both runs are in the output, so that what often needs the second one is seen, and mended.
BESIDE := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
ALONE := $(BIN)/python -m pytest -n 0 --last-failed --last-failed-no-failures none

# Hundreds of processes are started, each of which would compile all of our code anew.
test check soak: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv up demo test check sim sim-long soak bench docs lock clean

help:               ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/'

$(RUNTIME): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(DEMO): $(RUNTIME) requirements-demo.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-demo.lock
	@touch $@

venv: $(DEV)        ## make .venv with everything for development

up: $(RUNTIME)      ## run the whole system in one process (ARGS="--port 9000" for options)
	@exec $(BIN)/roadstead up $(ARGS)

demo: $(DEMO)       ## real people talk through a system of their own while it is resized, drained and killed (two minutes)
	@exec $(BIN)/roadstead replay chitchat $(or $(ARGS),--day 2018-05-11 --speed 1000)

test: $(DEV)        ## all checks and all tests; installs the servers that they need
	@$(SERVERS)
	@$(MAKE) --no-print-directory check
	$(BESIDE) -m "not process" $(UNCHECKED) || $(ALONE) -m "not process" $(UNCHECKED)
	$(BESIDE) -m process $(UNCHECKED) || $(ALONE) -m process $(UNCHECKED)

check: $(DEV)       ## lint, types, architecture, tests of the cores: quick, before each commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto $(CHECKED)

sim: $(RUNTIME)     ## many seeded histories of the simulator (ARGS="--history resize --count 100000")
	$(BIN)/python -m roadstead.sim $(or $(ARGS),--count 1000)

sim-long: $(RUNTIME) ## 100,000 histories of the resize and of the leases: hours (JOBS=4 for four at a time)
	seq 0 1000 99000 | xargs -P $(or $(JOBS),2) -I SEED $(BIN)/python -m roadstead.sim --history resize --seed SEED --count 1000
	seq 0 1000 99000 | xargs -P $(or $(JOBS),2) -I SEED $(BIN)/python -m roadstead.sim --history leases --seed SEED --count 1000
	seq 0 1000 99000 | xargs -P $(or $(JOBS),2) -I SEED $(BIN)/python -m roadstead.sim --history messages --seed SEED --count 1000

soak: $(DEV)        ## long forms: simulator, crash tests, recorded histories and faults of a cluster
	$(BIN)/python -m roadstead.sim --history leases --count 20000
	$(BIN)/python -m roadstead.sim --history resize --count 10000
	ROADSTEAD_TEST_SEEDS=200 $(BIN)/python -m pytest -n auto --timeout 7200 tests/sim/test_resize.py
	ROADSTEAD_TEST_FAULTS=long $(BIN)/python -m pytest -m process --timeout 7200 -o faulthandler_timeout=0 tests/process/faults
	ROADSTEAD_TEST_CRASHES=1000 ROADSTEAD_TEST_HISTORIES=20 $(BIN)/python -m pytest -m process --timeout 7200

bench: $(DEV)       ## every benchmark, one JSON line each (ARGS="--quick --report report.html" for a page)
	@$(SERVERS)
	$(BIN)/python -m bench all $(ARGS)

docs: $(DEV)        ## write the generated pages: docs/reference, docs/spec-coverage.md
	$(BIN)/python -m roadstead.reference docs/reference
	$(BIN)/python -m tests.docs.spec_coverage

lock: $(RUNTIME)    ## resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header pyproject.toml --group build -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header pyproject.toml --group build --extra replay -c requirements-dev.lock -o requirements-demo.lock

clean:              ## remove everything that was made; keeps data folders
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
