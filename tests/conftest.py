"""What tests share: a real PostgreSQL, and real Engine processes."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from engine.embedded import server_for
from jobs import wakeups
from tests.clients import Office, open_office
from tests.processes import Instance, copy_home


def pytest_configure(config: pytest.Config) -> None:
    """Keep the embedded server for the whole session: parallel test processes end without leaving it."""
    settings.ENGINE_BENCHMARK = True  # agents that do nothing, where a test is about something else
    # A test may do in its transaction what takes long on a busy machine; processes under test keep the limit.
    options = settings.DATABASES["default"]["OPTIONS"]
    options["options"] = f"{options.get('options', '')} -c idle_in_transaction_session_timeout=0".strip()
    if settings.DATABASES["default"]["ENGINE"] == "engine.pgbackend":
        server_for(settings.ENGINE_HOME).ensure()


# Each takes a minute or more. Begun last, they would keep one of two test processes busy while the other has nothing.
LONGEST_FIRST = (
    "test_jobs_failpoints.py",
    "test_jobs_chaos.py",
    "test_llm_end_to_end.py",
    "test_end_to_end.py",
    "test_end_to_end_people.py",
    "test_dashboard_browser.py",
    "test_execution_e2b.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """On the machine of CI everything is there that a test may want: a skipped test is a failed one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("ENGINE_CI") == "1" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database has every table and nothing else: copied, it is a fresh installation in no time."""
    template = Instance(tmp_path_factory.mktemp("template") / "home")
    template.manage("migrate", "--verbosity", "0")
    return template.home


@pytest.fixture(scope="session")
def furnished_home(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the agents of the catalog, registered and embedded."""
    home = tmp_path_factory.mktemp("furnished") / "home"
    copy_home(migrated_home, home)
    Instance(home).manage("register_catalog")
    return home


@pytest.fixture(scope="session")
def office(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A running installation with the catalog, a worker and the agents of `tests/clients.py`, for tests of clients."""
    yield from open_office(furnished_home, tmp_path_factory)


@pytest.fixture
def make_instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Make fresh installations: `make_instance(ENGINE_LEASE_SECONDS="2")`, `make_instance(catalog=True)`.

    All are stopped after the test.
    """
    numbers = itertools.count(1)
    made: list[Instance] = []

    def make(*, catalog: bool = False, **environment: str) -> Instance:
        home = tmp_path / f"home-{next(numbers)}"
        copy_home(request.getfixturevalue("furnished_home" if catalog else "migrated_home"), home)
        made.append(Instance(home, environment))
        return made[-1]

    yield make
    for instance in made:
        instance.stop()


@pytest.fixture
def instance(make_instance: Callable[..., Instance]) -> Instance:
    """One fresh installation with nothing started: `instance.serve()`, `instance.worker()`, `instance.ready()`."""
    return make_instance()


@pytest.fixture(autouse=True)
def _no_wakeups_left() -> Iterator[None]:
    """Close the connection that wake-ups go out on: the test database cannot be dropped beside it."""
    yield
    wakeups.notifier.stop()
