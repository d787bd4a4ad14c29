# What people and machines do with this folder. `make` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run test test-desktop check install uninstall dist deb lock audit licences coverage mutants clean

# Options of the goals below; all may be given on the command line.
export PYTHON ?= /usr/bin/python3
export DESTDIR ?=
export WHEELS ?=
export EXTRAS ?= embedded
export GNOME ?= auto
export PLASMA ?= auto
export FACADES ?=
ARGS ?=
# The tests wait for processes half of the time: one worker more than there are processors.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))

help: ## list the goals
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

setup: ## make .venv with gpud, its first engine and the test tools; quick when nothing has changed
	@tools/setup

run: ## run gpud for yourself, with a tiny model to try it on; Ctrl-C ends it
	@tools/setup run
	@tools/run

# What is missing of Debian is told at once, not first for one step and then for the next.
test: ## run all tests (make test ARGS="tests/core -k budget" runs some)
	@tools/packages test
	@tools/setup
	@$(if $(ARGS),true,tests/provision all >/dev/null)
	@.venv/bin/python -m pytest $(or $(ARGS),--numprocesses=$(WORKERS))

test-desktop: ## run the widgets in real desktops, headless, as root; makes two Debian trees of 2 GB the first time
	@tools/packages test
	@tools/setup
	@.venv/bin/python -m pytest tests/desktop $(ARGS)

check: ## run the linters and the import rules only
	@tools/packages test
	@tools/setup
	@.venv/bin/python -m pytest -q tests/test_linters.py tests/test_architecture.py

install: ## install to /opt/gpud and into the system, as root (DESTDIR=, WHEELS=, EXTRAS=, GNOME=, PLASMA=, FACADES=: see tools/install)
	@tools/install install

uninstall: ## take all of that away; configuration, models and state stay
	@tools/install uninstall

dist: ## build the sdist and the wheel into build/dist
	@tools/dist

deb: ## build the Debian package into build/deb, for the Debian and the architecture that this is
	@tools/deb

lock: ## fit requirements/*.txt, the versions and hashes of all that is installed, to pyproject.toml (UPGRADE=1 takes the newest)
	@"$$(tools/maintain)/bin/python" tools/lock.py $(if $(UPGRADE),--upgrade)

audit: ## ask PyPI's advisories about requirements/*.txt; writes what is installed to build/sbom.json (CycloneDX)
	@"$$(tools/maintain)/bin/python" tools/audit.py

mutants: setup ## make small mistakes in gpud/core and count which tests see (ARGS="budget --sample 200"): see CONTRIBUTING.md
	@.venv/bin/python tools/mutants $(ARGS)

coverage: setup ## write docs/coverage.md anew: what was promised, and the tests that show it
	@cd tests && ../.venv/bin/python -m checklist.coverage

licences: setup ## write docs/licences.md anew from what is installed
	@.venv/bin/python tools/licences.py

clean: ## remove what was built here (.venv stays)
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find gpud tests -name __pycache__ -type d -prune -exec rm -rf {} +
