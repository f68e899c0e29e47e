# make demo, make test: each sets itself up from a bare clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check bench torture fuzz setup format clean

help:
	@echo "make demo    pretrain an encoder from raw text in some three minutes"
	@echo "make test    run all tests"
	@echo "make check   format, lint, types, import layers"
	@echo "make bench   whole training steps beside other programs' in some ten minutes"
	@echo "make torture a run killed a hundred times ends with the bits of one left alone"
	@echo "make fuzz    100,000 hostile inputs to every reader, in some eight minutes"
	@echo "make setup   the .venv with all that development and tests need"

demo: .venv/ready-sample
	$(BIN)/python examples/demo.py

test: .venv/ready-dev
	$(BIN)/python -m pytest --every-error

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready-bench
	$(BIN)/python benchmarks/throughput.py

torture: .venv/ready-dev
	$(BIN)/python tests/torture.py --kills 100

fuzz: .venv/ready-dev
	$(BIN)/python tests/fuzz/run.py --inputs 100000

setup: .venv/ready-dev

format: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist

# A stamp is older than what it was made from only where the .venv must be brought up to date.
.venv/ready-sample: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[sample]'
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[sample,dev]'
	@touch $@ .venv/ready-sample

.venv/ready-bench: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@ .venv/ready-sample

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
