# `make run` starts Engine, `make test` checks it. Each sets up what it needs in .venv and ENGINE_HOME first.
PYTHON ?= python3
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --universal --generate-hashes --no-header --python-version 3.11 --quiet
export PYTHON

.PHONY: run install test lint bench lock chaos drain guards walk drill-people drill-backup drill-hosts drill-failover drill-redis drill-bucket prove-images lint-deploy

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

# Figures, not tests: beside other queues, which are installed apart. It works in a home of its own, .engine-bench.
bench:
	@requirements/install test
	@test -x .venv-peers/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-peers
	@$(BIN)/uv pip install --quiet --require-hashes --python .venv-peers/bin/python -r requirements/peers.lock
	@ENGINE_HOME=$${ENGINE_HOME:-.engine-bench} $(BIN)/python -m benchmarks --peers .venv-peers/bin/python

# Hashes of every file that may be installed, and no index: the lock serves any mirror and every platform.
lock:
	$(LOCK) pyproject.toml --extra e2b --extra llm -o requirements/runtime.lock
	$(LOCK) pyproject.toml --extra e2b --extra llm --group test -c requirements/runtime.lock -o requirements/test.lock
	$(LOCK) requirements/sandbox.in -o requirements/sandbox.lock
	$(LOCK) requirements/bubblewrap.in -o requirements/bubblewrap.lock
	$(LOCK) requirements/uv.in -o requirements/uv.lock
	$(LOCK) requirements/peers.in -o requirements/peers.lock
	$(LOCK) requirements/lint.in -o requirements/lint.lock

# Drills: docs/chaos.md says what they count. Their load and their faults are options, here with their defaults.
JOBS ?= 6000
KILLS ?= 200
RESTARTS ?= 30
WORKERS ?= 4
MINUTES ?= 25
chaos:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.chaos --jobs $(JOBS) --kills $(KILLS) --restarts $(RESTARTS) --workers $(WORKERS) \
		--minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

drain:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.drain $(if $(SEED),--seed $(SEED))

guards:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.guards

# Tests that take minutes each: a fault at every place of every transaction, deploys under load.
walk:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m pytest -q -m drill

# A job with steps, `once` steps and a question, its worker killed at every 25 ms of its life.
drill-people:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.people

# A backup while jobs run, the end of everything, a restored installation that goes on (docs/operations.md).
drill-backup:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@DJANGO_SETTINGS_MODULE=engine.settings exec $(BIN)/python -m drills.backup

# The release before on this release's tables (docs/deployment.md): REVISION=v0.1.0, or what the drill finds.
upgrade-check:
	@requirements/install test
	@exec $(BIN)/python -m drills.upgrade $(if $(REVISION),--revision $(REVISION))

# Both images, step by step in bare Debian trees, and a job through them. As root, with debootstrap; says so if it cannot.
prove-images:
	@requirements/install test
	@exec $(BIN)/python -m drills.images $(if $(FOLDER),--folder $(FOLDER))

lint-deploy:
	@requirements/install test
	@test -x .venv-lint/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-lint
	@$(BIN)/uv pip install --quiet --require-hashes --python .venv-lint/bin/python -r requirements/lint.lock
	@deploy/lint .venv-lint/bin

# Six hosts of network namespaces, cut off and switched off; a primary database that dies. As root: docs/operations.md.
drill-hosts:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.hosts $(if $(SEED),--seed $(SEED))

drill-failover:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.failover $(if $(SEED),--seed $(SEED))

# Redis and the bucket away under load, and back.
drill-redis:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.redis_away

drill-bucket:
	@requirements/install test
	@$(BIN)/python manage.py build_runtime
	@exec $(BIN)/python -m drills.bucket
