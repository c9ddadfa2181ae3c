# make sample: pictures from a bundled model; make demo: the web demo; make test: the suite; make lint: style and types.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: sample demo test lint

sample: .venv/installed
	$(BIN)/genaim sample

demo: .venv/installed-demo
	$(BIN)/genaim demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy genaim samplers apps

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/installed-demo: .venv/installed
	$(PIP) -e '.[demo]'
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@
