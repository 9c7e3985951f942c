# `make demo` and `make test` are all the set-up there is: Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.8
JOBS ?= 2 # processes of the tests; each may take 1.5 GB
STAMP := .venv/.edgetl-installed

.PHONY: help setup demo test test-all lint bench bench-all readme peers-setup lock clean
help:
	@echo "make setup     .venv with everything at pinned versions (a download of several GB, 7.7 GB on disk)"
	@echo "make demo      the whole line on embedded data: fine-tune, INT8, engine coverage, bench table"
	@echo "make test      the fast tests;  make test-all  the slow ones too"
	@echo "make lint      ruff, mypy --strict, import-linter"
	@echo "make bench     the CPU suite and the bench's checks on itself (rows in benchmarks/results; 15 minutes)"
	@echo "make bench-all every suite: training, transfer, INT8, peers, memory (hours)"
	@echo "make peers-setup  NNCF and OpenVINO in an environment of their own, for the suites of peers"
	@echo "make readme    the README's console blocks and picture anew, from one run (sample data, 6 quiet minutes)"
	@echo "make lock      resolve requirements.lock again;  make clean  remove .venv and what demo and dist left"

setup: $(STAMP)
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: edgetl needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --python $(BIN)/python --quiet --require-hashes --compile-bytecode -r requirements.lock
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup
	$(BIN)/edgetl demo

test: setup
	$(BIN)/python -m pytest -n $(JOBS)

test-all: setup
	$(BIN)/python -m pytest -n $(JOBS) -m 'slow or not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks bench checks

bench-all: setup
	$(BIN)/python -m benchmarks

readme: setup
	$(BIN)/python -m benchmarks.readme

peers-setup: setup
	test -x benchmarks/.peers/bin/python || $(UV) venv --quiet benchmarks/.peers
	$(UV) pip install --quiet --python benchmarks/.peers/bin/python -r benchmarks/peers-requirements.txt

lock:
	test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra rtx --extra dev --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:
	rm -rf .venv edgetl-demo dist build
