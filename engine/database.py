"""Connections outside Django's (the heartbeat's, the hub's LISTEN), and limits that a process puts on its own."""

from typing import Any

from django.conf import settings
from django.db import connection, connections
from psycopg.conninfo import make_conninfo


def direct_dsn() -> str:
    """Where a raw psycopg connection reaches the database itself, not a pooler, as a libpq connection string.

    The embedded server is started if need be. The string holds the password: never log it.
    """
    if settings.DIRECT_DATABASE is not None:
        return make_conninfo(**libpq_parameters(settings.DIRECT_DATABASE))
    params = connection.get_connection_params()  # starts the embedded server
    for django_only in ("context", "cursor_factory", "prepare_threshold", "client_encoding"):
        params.pop(django_only, None)
    return make_conninfo(**params)


def libpq_parameters(database: dict[str, Any]) -> dict[str, Any]:
    """One entry of DATABASES in libpq's words."""
    named = {
        "dbname": database["NAME"],
        "user": database["USER"],
        "password": database["PASSWORD"],
        "host": database["HOST"],
        "port": database["PORT"],
    }
    options: dict[str, Any] = database["OPTIONS"]
    return {name: value for name, value in named.items() if value} | options


def limit_statements(seconds: float) -> None:
    """Let no statement of this process run longer. Call it before the first connection.

    Commands such as migrate set no limit: a new index may take its time.
    """
    database = connections.settings["default"]
    if (
        settings.DIRECT_DATABASE is None
    ):  # a pooler refuses start-up options: there the role carries the limits
        options = database["OPTIONS"]
        options["options"] = f"{options.get('options', '')} -c statement_timeout={seconds * 1000:.0f}".strip()
