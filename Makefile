# One obvious command for each habit.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
DEMO   ?= demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix lint types docs docs-links bench soak release clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make an installation happen once, and again when what it installs changes.
$(STAMPS)/demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@mkdir -p $(STAMPS) && touch $@

demo: $(STAMPS)/demo  ## train, profile, fit and run a multi-exit network on real digits
	$(BIN)/eenet demo --out $(DEMO)

# A worker that dies fails the run at once: pytest-xdist would start another, and may wait forever for the tests lost.
# A test that hangs for half an hour fails, with a traceback of where: some take minutes on a busy machine.
test: $(STAMPS)/dev  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --timeout 1800 -q

lint: $(STAMPS)/dev  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev  ## static types, strict
	$(BIN)/mypy

docs: $(STAMPS)/dev  ## the documentation site in docs/_build/html; runs the tutorials; needs no network
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	$(BIN)/python tests/support/site_links.py docs/_build/html

docs-links: $(STAMPS)/dev  ## whether the addresses of other sites on the pages answer; needs a network
	EENET_DOCS_RUN=0 $(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

bench: $(STAMPS)/dev  ## the benchmarks; prints machine, versions and spread
	$(BIN)/python benchmarks/resnet50.py
	$(BIN)/python benchmarks/onnx_bundle.py
	$(BIN)/python benchmarks/schedulers.py
	$(BIN)/python benchmarks/fitting.py
	$(BIN)/python benchmarks/controller.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/ray_serving.py

test-matrix: $(STAMPS)/dev  ## the core and the runtime of bundles on every Python from 3.10 to 3.13 that is installed
	$(BIN)/nox

release: $(STAMPS)/dev  ## build and check what would be uploaded; upload nothing
	@! grep -q dev src/eenet/_version.py || { echo "src/eenet/_version.py says a development version: set the release's"; exit 1; }
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/check-sdist
	$(BIN)/python -m pytest -q tests/docs/test_release.py
	EENET_TEST_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest -q tests/test_installed.py
	@echo "checked, not uploaded: $$(echo dist/*); upload with $(BIN)/twine upload dist/*"

soak: $(STAMPS)/dev  ## half an hour of mixed traffic to a server, then overload
	$(BIN)/python benchmarks/soak.py

clean:  ## remove what the commands above made, the environment included
	rm -rf docs/_build docs/tutorials docs/reference/api docs/reference/results
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis .nox build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
