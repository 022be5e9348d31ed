# emulab: what does a live migration cost the users of a service?  `make` lists what there is to do.
PYTHON ?= python3
VENV := .venv
EMULAB := $(VENV)/bin/emulab
PY := $(VENV)/bin/python -m

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help experiment bench test doctor up down gc ui report lint types test-unit bootstrap bootstrap-dev

# What a scenario says is changed by USERS=100 STEADY=120 SEED=1 RATE=100mbit and SET='key=value key=value';
# SCENARIO= is a shipped scenario's name or a file.
settings = $(if $(USERS),--users '$(USERS)') $(if $(STEADY),--steady '$(STEADY)') $(if $(SEED),--seed '$(SEED)') $(if $(RATE),--set 'rate=$(RATE)') $(foreach one,$(SET),--set '$(one)')
scenario = $(if $(SCENARIO),--scenario '$(SCENARIO)')

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

experiment: bootstrap ## run an experiment: USERS=100 STEADY=120 SCENARIO=one-migration SEED=1
	@$(EMULAB) experiment --repair $(scenario) $(settings)

bench: bootstrap ## our migration beside stock CRIU, 45 minutes: REPETITIONS=5 QUICK=1 ONLY="web idle" RESUME=runs/bench/latest
	@$(EMULAB) bench --repair $(if $(REPETITIONS),--repetitions '$(REPETITIONS)') $(if $(QUICK),--quick) $(foreach one,$(ONLY),--only '$(one)') $(if $(RESUME),--resume '$(RESUME)')

test: bootstrap-dev ## everything that CI runs: lint, types and all tests
	@$(EMULAB) doctor --fix --tests
	@$(MAKE) --no-print-directory lint types
	@$(PY) pytest

soak: bootstrap-dev ## the long tests: every fault at every phase of every strategy, MIGRATIONS=200 in a row (hours)
	@$(EMULAB) doctor --fix --tests
	@$(if $(MIGRATIONS),MIGRATIONS='$(MIGRATIONS)') $(PY) pytest -m soak

test-kernel: bootstrap-dev ## migration tests on a stock kernel in an emulated machine; ARGS= for pytest; REMOVE=1 deletes its 3 GB
	@$(VENV)/bin/python tests/kernel/machine.py $(if $(REMOVE),remove,test $(ARGS))

doctor: bootstrap ## check the machine; FIX=1 repairs it, DEV=1 includes what only tests need
	@$(EMULAB) doctor $(if $(FIX),--fix) $(if $(DEV),--tests)

up: bootstrap ## bring up the six nodes
	@$(EMULAB) up

down: bootstrap ## remove nodes, networks and guests, whatever an interrupted run left
	@$(EMULAB) down

gc: bootstrap ## remove everything of ours, images too
	@$(EMULAB) gc

ui: bootstrap ## the site under interactive load: Locust's web page on 127.0.0.1:8089 (USERS= SCENARIO= SEED=)
	@$(EMULAB) ui --repair $(scenario) $(if $(USERS),--users '$(USERS)') $(if $(SEED),--seed '$(SEED)')

report: bootstrap ## rebuild the report of a run: RUN=runs/latest
	@$(EMULAB) report $(if $(RUN),'$(RUN)')

lint: bootstrap-dev ## ruff: rules and format
	@$(PY) ruff check .
	@$(PY) ruff format --check .

types: bootstrap-dev ## mypy, strict
	@$(PY) mypy

test-unit: bootstrap-dev ## the tests that need no root and no engine
	@$(PY) pytest tests/unit

bootstrap:
	@$(PYTHON) emulab/doctor/bootstrap.py --venv $(VENV)

bootstrap-dev:
	@$(PYTHON) emulab/doctor/bootstrap.py --venv $(VENV) --dev
