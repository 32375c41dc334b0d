"""Connections outside Django's (the heartbeat's, the hub's LISTEN), and limits that a process puts on its own."""

from typing import Any

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError, connection, connections, transaction
from psycopg.conninfo import conninfo_to_dict, make_conninfo


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


def is_embedded() -> bool:
    """Whether the database is the embedded one."""
    return bool(settings.DATABASES["default"]["ENGINE"] == "engine.pgbackend")


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


def refuse_risky_durability() -> None:
    """In production, raise ImproperlyConfigured if a crash of the database could lose what it acknowledged.

    A database that is away now passes: it may be back in a moment, and was right when it was set up.
    """
    if not settings.PRODUCTION:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT name FROM pg_settings WHERE setting = 'off' "
                "AND name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
            )
            off = [name for (name,) in cursor.fetchall()]
    except (OperationalError, InterfaceError):
        return
    if off:
        raise ImproperlyConfigured(
            f"The database runs with {', '.join(off)} off, and a crash would lose jobs: switch it on there."
        )


def pooling_problem() -> str:
    """The variable that leads through a pooler where Engine needs a session of its own, and the fix; empty if none.

    A session is one that what was said at its start holds for. Raises psycopg.OperationalError if nobody answers.
    """
    if is_embedded():
        return ""
    try:
        # A name that no role has set: what is asked for at the start has to be there afterwards.
        options = f"{conninfo_to_dict(direct_dsn()).get('options', '')} -c engine.session=kept".strip()
        with psycopg.connect(make_conninfo(direct_dsn(), options=options)) as session:
            kept = session.execute("SELECT current_setting('engine.session', true)").fetchone()
    except psycopg.OperationalError as error:
        if "startup parameter" not in str(error):  # PgBouncer's words
            raise
        kept = None
    if kept == ("kept",):
        return statement_pooling_problem() if settings.DIRECT_DATABASE is not None else ""
    if settings.DIRECT_DATABASE is not None:
        return (
            "ENGINE_DIRECT_DATABASE_URL leads through a pooler: let it name the database itself, for LISTEN."
        )
    return (
        "DATABASE_URL leads through a pooler, where LISTEN is not heard: set ENGINE_DIRECT_DATABASE_URL to the "
        "database itself, and leave DATABASE_URL as it is."
    )


def statement_pooling_problem() -> str:
    """What to do about a pooler that takes sessions away within a transaction; empty if none does."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError) as error:
        if "statement pooling" in str(error):  # PgBouncer's words
            return "DATABASE_URL leads through a pooler in statement mode: set its pool_mode to transaction."
    return ""  # any other trouble shows where it matters


def refuse_wrong_pooling() -> None:
    """Raise ImproperlyConfigured if a pooler stands where it cannot. A database that is away now passes."""
    try:
        problem = pooling_problem()
    except psycopg.OperationalError:
        return
    if problem:
        raise ImproperlyConfigured(problem)


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
