"""A deployment brings the database up to its release once, while the release before goes on."""

import threading
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

from agents.models import Agent
from engine.database import direct_dsn
from engine.indexes import BuildIndex
from engine.management.commands import release
from tests.processes import eventually

NAME = "agentversion_tags_idx"
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"


def the_index() -> tuple[BuildIndex, ProjectState]:
    """The operation that builds the index, and the state of the models after it."""
    loader = MigrationLoader(connection)
    operation = loader.get_migration("agents", "0002_tags_index").operations[0]
    assert isinstance(operation, BuildIndex)
    return operation, loader.project_state([("agents", "0002_tags_index")])


def build_again() -> None:
    operation, state = the_index()
    with connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("agents", editor, state, state)


def is_valid() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(IS_VALID, [NAME])
        row = cursor.fetchone()
    return row is not None and row[0]


@pytest.mark.django_db(transaction=True)
def test_an_index_whose_build_was_cut_off_is_built_again():
    with connection.cursor() as cursor:
        cursor.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)", [NAME])

    build_again()

    assert is_valid()


@pytest.mark.django_db(transaction=True)
def test_an_index_waits_for_a_long_transaction_beyond_the_lock_timeout():
    with connection.cursor() as cursor:
        cursor.execute(f"DROP INDEX {NAME}")
        cursor.execute("SET lock_timeout = '50ms'")
    with psycopg.connect(direct_dsn()) as backup, psycopg.connect(direct_dsn(), autocommit=True) as watcher:
        backup.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        backup.execute("SELECT count(*) FROM agents_agentversion")  # as pg_dump does, for as long as it takes
        waited = threading.Event()

        def end_the_backup() -> None:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND now() - waitstart > interval '0.2 s'"
            eventually(lambda: watcher.execute(waiting).fetchone(), what="the build waits")
            waited.set()
            backup.rollback()

        ending = threading.Thread(target=end_the_backup)
        ending.start()
        build_again()
        ending.join()

    assert waited.is_set()
    assert is_valid()
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("50ms",)
        cursor.execute("RESET lock_timeout")


@pytest.mark.django_db(transaction=True)
def test_a_second_release_waits_for_the_first_and_holds_up_no_index(monkeypatch):
    monkeypatch.setattr(release, "LOOK_SECONDS", 0.01)
    said = StringIO()
    with psycopg.connect(direct_dsn(), autocommit=True) as first, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT pg_advisory_lock(%s)", [release.LOCK])

        def second() -> None:
            call_command("release", stdout=said)
            connection.close()

        running = pool.submit(second)
        held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_try_advisory_lock%%' AND state = 'idle'"
        eventually(lambda: first.execute(held).fetchone() == (1,), what="the second looks now and then")
        assert said.getvalue() == ""
        first.execute("SELECT pg_advisory_unlock(%s)", [release.LOCK])
        running.result(60)

    assert "No migrations to apply" in said.getvalue()
    assert Agent.objects.filter(slug="review-sentiment").exists()
