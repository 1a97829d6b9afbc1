# The same verbs on a laptop and in CI. `make` alone lists them.
# PYTHON: the interpreter that .venv is made from. LOCK=cpu or LOCK=cuda overrides the look for a GPU.
PYTHON = python3
LOCK = auto
BIN = .venv/bin

.PHONY: help setup demo test test-quick lint bench bench-trainers

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with everything in it (about 90 s; when there is nothing to do, under 1 s)
	@$(PYTHON) requirements/install.py --lock $(LOCK)

demo: setup ## train, align and serve a small model before your eyes (DEMO_EXIT=1: end after the table)
	@$(BIN)/python -m trainers.tiny.demo

test: setup ## every test, the real engines included
	$(BIN)/python -m pytest

test-quick: setup ## the tests that need no engine: a minute or two
	$(BIN)/python -m pytest -m "not slow"

lint: setup ## style, complexity, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup ## every benchmark (15 minutes): tables here, figures in runs/bench/
	$(BIN)/python -m loadtests all

bench-trainers: setup ## the trainers against TRL, which gets environments of its own (about 20 minutes)
	$(BIN)/python -m loadtests trainers
