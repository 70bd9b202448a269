# `make demo` and `make test` set up all they need (Debian packages as root, .venv, the native extension) and run.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
ARGS ?=
TESTS ?= tests
# In two processes where there are processors for them; the tests of one file, and all in the nested host, stay together
# (tests/parallel.py).
JOBS ?= $(shell n=$$(nproc); echo $$((n > 1 ? 2 : 1)))
PYTEST = $(PY) -m pytest $(if $(filter 1,$(JOBS)),,-n $(JOBS))

.PHONY: help demo fuzz soak test test-thorough test-sanitized lint format native setup setup-test bench clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## boot a stock Debian guest to a shell (ARGS=--script: unattended, shows the transcript)
	@tools/setup guest
	@$(PY) -m examples.demo $(ARGS)

# asyncio's own loop is CI's, too; test-thorough has both
test: export AIOVMM_LOOPS ?= uvloop
test: setup-test ## all tests on every ground that this machine has (TESTS=path narrows it, JOBS=1 in one process)
	$(PYTEST) $(TESTS) $(ARGS)

test-thorough: setup-test ## also what takes long: every device under three kernels, loads, reloads, a bare Debian 13, newer Pythons, VT-x in Bochs
	AIOVMM_THOROUGH=1 AIOVMM_KVMHOST_FIRST=1 $(PYTEST) $(TESTS) $(ARGS)

# All of them once under the address and undefined-behaviour sanitizers; then what is nearest to native code with freed memory
# overwritten, which also finds what Python's own allocator would hide.
NEAR_NATIVE := tests/native tests/kvm tests/virtqueue tests/vfio tests/pci tests/vm
test-sanitized: setup-test ## the tests outside the nested host, on native code that checks itself
	tools/test-sanitized address $(if $(filter 1,$(JOBS)),,-n $(JOBS)) tests $(ARGS)
	tools/test-sanitized perturb $(if $(filter 1,$(JOBS)),,-n $(JOBS)) $(NEAR_NATIVE) $(ARGS)

setup: ## packages, virtual environment, native extension
	@tools/setup base

setup-test:
	@tools/setup test

MINUTES ?= 60
soak: setup-test ## guests of every kind and all that can happen to them, for MINUTES=60
	.venv/bin/python -m tests.soak --minutes $(MINUTES)

# Atheris for the targets in Python; clang, for those in C, comes with setup-test. ARGS="--executions 10000000": that many of each
fuzz: setup-test ## coverage-guided fuzzing of all targets on all processors, for MINUTES=60 together (ARGS=TARGET narrows it)
	$(VENV)/bin/python -c 'import atheris' 2>/dev/null || $(VENV)/bin/pip install -q --disable-pip-version-check -e '.[fuzz]'
	$(PY) -m tests.fuzz --minutes $(MINUTES) $(ARGS)

lint: ## ruff and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

native: ## rebuild the native extension and replace it in one step
	@mkdir -p build && flock build/native.lock bash -o pipefail -c '\
	  $(PY) -W ignore setup.py -q build_ext --build-lib build/lib --build-temp build/tmp 2>&1 | { grep -v -e ExperimentalConfiguration -e "config = read_configuration" -e "^$$" || true; } \
	  && for so in build/lib/aiovmm/native/_native*.so; do \
	       cp $$so aiovmm/native/.tmp.so && mv aiovmm/native/.tmp.so aiovmm/native/$$(basename $$so); done \
	  && mkdir -p aiovmm/agent/bin && for agent in build/lib/aiovmm/agent/bin/aiovmm-agent-*; do \
	       cp -p $$agent aiovmm/agent/bin/.tmp && mv aiovmm/agent/bin/.tmp aiovmm/agent/bin/$$(basename $$agent); done'

bench: ## the benchmarks against QEMU and C floors (ARGS="NAME --quick"; without: all, into build/)
	@tools/setup test
	@mkdir -p build
	$(PY) -m benchmarks $(or $(ARGS),all --json build/benchmarks.json --svg build/benchmarks.svg)

clean: ## what builds and tests leave
	rm -rf build dist *.egg-info aiovmm/native/*.so aiovmm/agent/bin .mypy_cache .ruff_cache .pytest_cache .hypothesis
