"""What tests share: a real PostgreSQL, and real Engine processes."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from engine.embedded import server_for
from tests.processes import Instance, copy_home


def pytest_configure(config: pytest.Config) -> None:
    """Keep the embedded server for the whole session: parallel test processes end without leaving it."""
    if settings.DATABASES["default"]["ENGINE"] == "engine.pgbackend":
        server_for(settings.ENGINE_HOME).ensure()


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database has every table and nothing else: copied, it is a fresh installation in no time."""
    template = Instance(tmp_path_factory.mktemp("template") / "home")
    template.manage("migrate", "--verbosity", "0")
    return template.home


@pytest.fixture
def make_instance(migrated_home: Path, tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Make fresh installations: `make_instance(ENGINE_LEASE_SECONDS="2")`. All are stopped after the test."""
    numbers = itertools.count(1)
    made: list[Instance] = []

    def make(**environment: str) -> Instance:
        home = tmp_path / f"home-{next(numbers)}"
        copy_home(migrated_home, home)
        made.append(Instance(home, environment))
        return made[-1]

    yield make
    for instance in made:
        instance.stop()


@pytest.fixture
def instance(make_instance: Callable[..., Instance]) -> Instance:
    """One fresh installation with nothing started: `instance.serve()`, `instance.worker()`, `instance.ready()`."""
    return make_instance()
