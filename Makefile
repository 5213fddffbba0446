# `make demo` and `make test` do all the set-up that they need, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-long unit lint bench clean

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[server,test]"
	touch $@

demo: $(STAMP)
	$(BIN)/ray-jobs run --working-dir examples/quickstart \
	    --runtime-env-json '{"pip": ["requests==2.31.0"]}' -- python script.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ray_jobs dashboard_module tests benchmarks

unit: $(STAMP)
	$(BIN)/pytest tests/unit

test: lint
	$(BIN)/pytest

# Each fault at ten times as many moments, and longer fuzzing.
test-long: $(STAMP)
	RAY_JOBS_FAULT_TIMES=10 $(BIN)/pytest tests/faults
	$(BIN)/pytest -m long

bench: $(STAMP)
	$(BIN)/python -m benchmarks --json benchmarks/latest.json $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
