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

# Each fault at so many times as many moments, and all that is marked `long`: the longer fuzzing and
# modelling too. How long that takes is said in one place.
FAULT_TIMES := 3
test-long: $(STAMP)
	@sed -n 's/^`make test-long` takes/This takes/p' docs/development.md
	failed=0; \
	RAY_JOBS_FAULT_TIMES=$(FAULT_TIMES) $(BIN)/pytest -m "long or not long" tests/faults \
	    tests/clusters/test_retention.py || failed=1; \
	$(BIN)/pytest -m long --ignore=tests/faults \
	    --ignore=tests/clusters/test_retention.py || failed=1; \
	exit $$failed

bench: $(STAMP)
	$(BIN)/python -m benchmarks --json benchmarks/latest.json $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
