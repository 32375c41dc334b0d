# `make run` starts Engine, `make test` checks it. Each sets up what it needs in .venv and ENGINE_HOME first.
PYTHON ?= python3
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --universal --generate-hashes --no-header --python-version 3.11 --quiet
export PYTHON

.PHONY: run install test lint lock

run:
	@requirements/install runtime
	@exec $(BIN)/python manage.py up --end-with-parent

install:
	@requirements/install runtime

test:
	@requirements/install test
	@exec ./.ci/checks

lint:
	@requirements/install test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy .

# Hashes of every file that may be installed, and no index: the lock serves any mirror and every platform.
lock:
	$(LOCK) pyproject.toml --extra e2b --extra llm -o requirements/runtime.lock
	$(LOCK) pyproject.toml --extra e2b --extra llm --group test -c requirements/runtime.lock -o requirements/test.lock
	$(LOCK) requirements/sandbox.in -o requirements/sandbox.lock
	$(LOCK) requirements/bubblewrap.in -o requirements/bubblewrap.lock
	$(LOCK) requirements/uv.in -o requirements/uv.lock
