"""Connections: limits, the way past a pooler, durability."""

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from engine.database import direct_dsn, refuse_risky_durability


def setting(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        value: str = cursor.fetchone()[0]
    return value


@pytest.mark.django_db
def test_no_transaction_idles_and_no_lock_is_waited_for_long(settings):
    # The tests' own connections may idle (conftest.py): what others get is this.
    assert "idle_in_transaction_session_timeout=10000" in settings.SESSION_TIMEOUTS
    assert setting("lock_timeout") == "2s"
    assert setting("application_name") == "engine"


@pytest.mark.django_db
def test_a_direct_connection_reaches_the_same_database():
    with psycopg.connect(direct_dsn()) as direct:
        row = direct.execute("SELECT current_database()").fetchone()

    assert row == (connection.settings_dict["NAME"],)


def test_past_a_pooler_the_direct_address_is_used(settings):
    settings.DIRECT_DATABASE = {
        "NAME": "engine", "USER": "me", "PASSWORD": "p w'", "HOST": "primary", "PORT": "",
        "OPTIONS": {"connect_timeout": 5},
    }  # fmt: skip

    parts = psycopg.conninfo.conninfo_to_dict(direct_dsn())

    assert parts == {
        "dbname": "engine",
        "user": "me",
        "password": "p w'",
        "host": "primary",
        "connect_timeout": "5",
    }


@pytest.mark.django_db
def test_production_refuses_a_database_that_forgets(settings):
    settings.PRODUCTION = True
    refuse_risky_durability()

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
        with pytest.raises(ImproperlyConfigured, match="synchronous_commit off"):
            refuse_risky_durability()

    settings.PRODUCTION = False
    refuse_risky_durability()
