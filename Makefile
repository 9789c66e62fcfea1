# One command per chore. Each first makes .venv with the tested versions, so a fresh clone needs nothing but
# Python 3.11 or newer and pip's access to its package index.
#
# Another interpreter:   make demo PYTHON=python3.12
# Arguments:             make demo ARGS="--model FOLDER"      make test ARGS="tests/test_images.py -x"
# With a GPU:            run `make install` once, install the torch build for your driver into .venv with the command
#                        that PyTorch's own installation page gives, then go on; make does not touch it again until
#                        the requirements change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-long lint fix tiny

help:
	@echo "make demo | test | test-long | lint | fix | tiny | install    (see the first lines of the Makefile)"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python demo.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long --timeout 3600 $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The built-in model from nothing, to runs/tiny/model; goes on where it was stopped.
tiny: $(INSTALLED)
	$(BIN)/python -m minichat.train.tiny $(ARGS)

# The stamp is written last: an install that was cut off is done again.
$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("MiniChat needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install --no-deps -e .
	@touch $@
