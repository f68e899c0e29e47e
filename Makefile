# make demo, make test: each sets itself up from a bare clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all check bench gpu torture fuzz setup format clean

help:
	@echo "make demo      pretrain an encoder from raw text, in about three minutes"
	@echo "make test      most tests, in under four minutes on two cores"
	@echo "make test-all  every test, in about ten minutes"
	@echo "make check     format, lint, types, import layers"
	@echo "make bench     whole training steps beside other programs', in about ten minutes"
	@echo "make gpu       tests and speed on a CUDA device, in about ten minutes"
	@echo "make torture   a run killed a hundred times ends with the bits of one left alone"
	@echo "make fuzz      100,000 hostile inputs to every reader, in about eight minutes"
	@echo "make setup     the .venv with all that development and tests need"

demo: .venv/ready-sample
	$(BIN)/python examples/demo.py

# A process for each core; each computes with one thread. Tests marked alone have the machine.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist worksteal

test: .venv/ready-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --fast --every-error

test-all: .venv/ready-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not alone" --every-error
	$(BIN)/python -m pytest -m alone

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready-bench
	$(BIN)/python benchmarks/throughput.py

gpu: .venv/ready-dev
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or \
	  sys.exit("no CUDA device here: nothing was tested or measured")'
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

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
