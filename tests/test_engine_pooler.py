"""PgBouncer in transaction mode before everything but LISTEN; where it stands wrongly, the start says so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from engine import diagnosis, environment
from engine.database import refuse_wrong_pooling
from engine.embedded import DATABASE, EmbeddedServer, server_for
from engine.installation import prepare_database
from engine.steps import StepFailed
from tests.pgbouncer import SERVER_CONNECTIONS, Pooler, pooler
from tests.processes import Instance, eventually

LISTENERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
)


@pytest.fixture(scope="module", params=["", "options"], ids=["as installed", "dropping options"])
def before_tests_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pooler]:
    """A PgBouncer before the server of these tests: refusing what is said at a session's start, or dropping it."""
    from django.conf import settings

    folder = tmp_path_factory.mktemp("pooler")
    with pooler(folder, server_for(settings.ENGINE_HOME), ignore=request.param) as started:
        yield started


def lead_through(url: str, settings: Any, monkeypatch: pytest.MonkeyPatch, *, direct: bool) -> None:
    """The settings that `url` makes, as DATABASE_URL or as ENGINE_DIRECT_DATABASE_URL."""
    monkeypatch.setenv("POOLER", url)
    parts: Any = environment.postgres("POOLER")
    parts["OPTIONS"] |= {"options": settings.SESSION_TIMEOUTS}
    monkeypatch.setattr("engine.database.is_embedded", lambda: False)
    if direct:
        settings.DIRECT_DATABASE = parts
    else:
        from engine.database import libpq_parameters

        monkeypatch.setattr(connection, "get_connection_params", lambda: libpq_parameters(parts))


@pytest.mark.parametrize("direct", [False, True], ids=["DATABASE_URL", "ENGINE_DIRECT_DATABASE_URL"])
def test_a_pooler_where_a_session_is_needed_stops_the_start(
    before_tests_database: Pooler, settings: Any, monkeypatch: pytest.MonkeyPatch, direct: bool
):
    lead_through(before_tests_database.url, settings, monkeypatch, direct=direct)
    name = (
        "ENGINE_DIRECT_DATABASE_URL leads"
        if direct
        else "DATABASE_URL leads.* set ENGINE_DIRECT_DATABASE_URL"
    )

    with pytest.raises(ImproperlyConfigured, match=name):
        refuse_wrong_pooling()
    with pytest.raises(StepFailed, match=name):
        prepare_database()
    found = diagnosis.pooling("pooling")

    assert not found.ok
    assert "pooler" in found.detail
    assert "database itself" in found.remedy


def test_a_pooler_that_knows_no_transactions_stops_the_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_instance: Any
):
    instance: Instance = make_instance()
    server = EmbeddedServer(instance.home)
    server.ensure()
    try:
        with pooler(tmp_path, server, mode="statement") as way:
            instance.env |= {"DATABASE_URL": way.url, "ENGINE_DIRECT_DATABASE_URL": way.direct}
            for command in ("serve", "runworker"):
                refused = instance.manage(command, check=False)
                assert refused.returncode == 1
                assert refused.stderr.strip() == (
                    "DATABASE_URL leads through a pooler in statement mode: set its pool_mode to transaction."
                )
            looked = instance.manage("doctor", check=False)
            assert "pool_mode to transaction" in looked.stdout
            way.process.kill()
            way.process.wait()
    finally:
        server.leave()


def test_a_database_that_is_away_does_not_stop_the_start(settings: Any, monkeypatch: pytest.MonkeyPatch):
    lead_through("postgresql://me@127.0.0.1:9/x", settings, monkeypatch, direct=True)

    refuse_wrong_pooling()


@pytest.mark.django_db
def test_behind_a_pooler_the_doctor_looks_for_the_limits_of_the_role(
    before_tests_database: Pooler, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    name = connection.settings_dict["NAME"]
    lead_through(
        before_tests_database.direct.replace(f"@/{DATABASE}", f"@/{name}"), settings, monkeypatch, direct=True
    )
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '10s'")
        limited = diagnosis.pooling("pooling")
        cursor.execute("SET LOCAL lock_timeout = 0")
        unlimited = diagnosis.pooling("pooling")

    assert (limited.ok, limited.detail) == (True, "DATABASE_URL through a pooler, LISTEN past it")
    assert (unlimited.ok, unlimited.remedy) == (False, "ALTER ROLE CURRENT_USER SET lock_timeout = '2s'")


def test_jobs_run_through_it_and_are_heard_of_past_it(make_instance: Any, tmp_path: Path):
    instance: Instance = make_instance()
    server = EmbeddedServer(instance.home)
    server.ensure()
    try:
        with pooler(tmp_path, server) as way, psycopg.connect(way.direct, autocommit=True) as outside:
            instance.env |= {
                "DATABASE_URL": way.url,
                "ENGINE_DIRECT_DATABASE_URL": way.direct,
                "ENGINE_BENCHMARK": "1",
            }
            run_jobs(instance, outside)
            instance.stop()
    finally:
        server.leave()


def run_jobs(instance: Instance, outside: "psycopg.Connection[Any]") -> None:
    """Forty jobs in one request and one after another, over fewer connections than there are threads."""
    key = instance.key()
    instance.worker()
    instance.serve()
    instance.ready()
    eventually(lambda: outside.execute(LISTENERS).fetchone()[0], seconds=60, what="LISTEN")  # type: ignore[index]
    with instance.client(key) as client:
        card = {"slug": "idle", "name": "Idle", "description": "Does nothing at all", "kind": "noop"}
        made = client.post("/api/v1/agents", json=card)
        assert made.status_code == 201, made.text
        jobs = [{"task": "Nothing", "agent": "idle"}] * 30
        posted = client.post("/api/v1/jobs/bulk", json={"jobs": jobs})
        assert posted.status_code == 200, posted.text
        for _ in range(10):
            assert client.post("/api/v1/jobs", json=jobs[0]).status_code == 201

        def ended() -> int:
            return len(client.get("/api/v1/jobs?status=completed&limit=200").json()["items"])

        eventually(lambda: ended() == 40, seconds=60, what="forty jobs")
    pooled = outside.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query NOT LIKE 'LISTEN%'"
        " AND client_port = -1 AND application_name = 'engine' AND state IS NOT NULL"
    ).fetchone()
    assert pooled is not None
    assert pooled[0] <= SERVER_CONNECTIONS + 2  # and those that send the notifications
