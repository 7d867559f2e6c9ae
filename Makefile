# Two commands from a fresh clone, with Python 3.11 or newer and nothing else: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast fuzz lint docs clean

# From nothing to demo/report.html; the same command goes on after an interruption.
demo: .venv/run
	$(BIN)/python -m examples.demo --output demo

# Two workers, each with whole files: tests of a file share what its fixtures make, and many wait for child processes.
test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Everything that needs neither a whole network nor a child process that compiles, in less than 3 minutes on two cores.
test-fast: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Many more broken and hostile files than `make test` reads, of each kind so many.
fuzz: .venv/test
	FUZZ=300 $(BIN)/python -m pytest -s tests/test_fuzz.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# The pages of docs/ and an API reference as a site in site/; a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo demo_quick build site *.egg-info

.venv/run: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torchvision is asked for alone: its own requirement would bring another PyTorch.
.venv/test: .venv/run requirements-beam.txt requirements-convert.txt requirements-test.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	touch $@

.venv/docs: .venv/run requirements-docs.txt
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
