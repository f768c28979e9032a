# `make run` shows the demo, `make test` checks everything; both set up what they need in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help run test check unit bench scaling sbom lock docs dashboards screenshots clean

help: ## Say what can be made.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "prompt-sidecar needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 …"; exit 2; }
	@echo "Setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock | $(BIN)/python
	@echo "Installing the locked dependencies …"
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked dependencies for development …"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.run

run: $(VENV)/.run ## Show the main job: healthy traffic, an outage, the policy's end, recovery.
	@$(BIN)/python -m sidecar demo

test: check unit ## Check everything and run the tests.

check: $(VENV)/.dev ## Lint, format, types, layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.dev ## Run the tests: those of the rules with branch coverage, which has to be complete.
	@$(BIN)/python -m compileall -q sidecar tests benchmarks # once, and not in each process that a test starts
	$(BIN)/python -m pytest -n 2 tests/core tests/service --cov --cov-report=term:skip-covered --cov-fail-under=100
	$(BIN)/python -m pytest -n 2 --ignore=tests/core --ignore=tests/service

bench: $(VENV)/.dev ## Compare a fresh hit, with telemetry and without, with a bare aiohttp handler; measure an entry's memory.
	$(BIN)/python -m benchmarks.fresh_hit
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.listeners

scaling: $(VENV)/.dev ## Measure what Redis pays for a group, and simulate groups of up to 10,000 pods.
	$(BIN)/python -m benchmarks.scaling

sbom: $(VENV)/.dev ## List what runs in the sidecar, with licences, as CycloneDX JSON in dist/.
	rm -rf dist/sbom-env && $(PYTHON) -m venv --without-pip dist/sbom-env
	$(PIP) --python dist/sbom-env/bin/python install --require-hashes -r requirements.lock
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --gather-license-texts --output-reproducible --of JSON -o dist/sbom.cdx.json dist/sbom-env/bin/python
	rm -rf dist/sbom-env

docs: $(VENV)/.dev ## Write again what is generated: config/sidecar.yaml, docs/settings.md, docs/status.*, the tables in docs/architecture.md.
	$(BIN)/python -m sidecar.docgen

dashboards: $(VENV)/.dev ## Write again what is generated in deploy/grafana.
	$(BIN)/python -m deploy.grafana.generate

screenshots: $(VENV)/.dev ## Take the pictures of the status page in docs/images again; needs Debian's chromium.
	$(BIN)/python -m tests.system.screenshots

lock: $(VENV)/.dev ## Lock the dependencies again, with hashes and without a registry's name.
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --group dev --extra otel -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo hatchling | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate -c requirements-dev.lock - -o deploy/requirements-build.lock

clean: ## Remove everything that was made.
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .sidecar
	find sidecar tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
