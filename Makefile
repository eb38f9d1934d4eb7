PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Flower takes typer and rich back to older versions than all else is tested with.
FLOWER := .venv-flower

.PHONY: setup run demo-deploy test nightly nightly-deploy lint bench notebook clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(READY)
	$(BIN)/natfl run demo

demo-deploy: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[flower]'
	$(BIN)/python -m secure_natfl.deploy.demo runs/demo-deploy

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

nightly: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m pytest -m nightly

nightly-deploy:
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,flower]'
	$(FLOWER)/bin/python -m pytest -m nightly tests/deploy

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks.protection --json
	$(BIN)/python -m benchmarks.aggregation --json

notebook: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebook]'
	mkdir -p runs
	$(BIN)/jupyter execute notebooks/leakage_attack.ipynb --output=../runs/leakage_attack.ipynb
	@echo "Executed: runs/leakage_attack.ipynb"

clean:
	rm -rf $(VENV) $(FLOWER) runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
