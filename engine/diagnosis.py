"""What `manage.py doctor` looks at: each part that Engine needs, whether it works, and the line that fixes it."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import httpx
import psycopg
from channels.layers import channel_layers
from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import DatabaseError, InterfaceError, ProgrammingError, connection
from django.utils import timezone
from redis.exceptions import RedisError

from agents import embeddings
from engine import health
from engine.database import direct_dsn, is_embedded, pooling_problem
from engine.errors import EngineError
from jobs.sandboxes.registry import provider_from_settings

OLDEST_POSTGRES = 150_000  # server_version_num: unique constraints with NULLS NOT DISTINCT
LEAST_FREE_BYTES = 2 * 1024**3
# What SESSION_TIMEOUTS are where no pooler is.
POOLED_LIMITS = {"lock_timeout": "2s", "idle_in_transaction_session_timeout": "10s"}
REDIS_SECONDS = 2.0
MODEL_SECONDS = 5.0
MOST_CLOCK_DRIFT = timedelta(seconds=2)


@dataclass(frozen=True)
class Finding:
    """One part. `remedy` is a command or a setting; it is there when the part does not work."""

    part: str
    ok: bool
    detail: str
    remedy: str = ""


# What libpq and PostgreSQL say, and what to do about it.
REFUSALS = (
    ("password authentication failed", "correct the user and the password in DATABASE_URL"),
    ("no password supplied", "put the password into DATABASE_URL: postgresql://user:password@host/database"),
    ("no pg_hba.conf entry", "let this host in (pg_hba.conf), or add sslmode=require to DATABASE_URL"),
    ("resolve host", "correct the host in DATABASE_URL: no such name is known here"),
    ("role ", "create the role, or correct the user in DATABASE_URL"),
    ('database "', "create the database (createdb), or correct its name in DATABASE_URL"),
    ("too many clients", "raise max_connections on the server, or put PgBouncer in front"),
    ("remaining connection slots", "raise max_connections on the server, or put PgBouncer in front"),
    ("permission denied", "grant the role of DATABASE_URL its database and its schema"),
    ("timeout", "open the way to that host and port (firewall, security group), or correct DATABASE_URL"),
    ("session is read-only", "name the primary in DATABASE_URL, too, with target_session_attrs=read-write"),
)
STORAGE_REFUSALS = (
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch"),
        "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the key to ENGINE_S3_BUCKET",
    ),
    (
        ("Unable to locate credentials",),
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    ),
    (("NoSuchBucket",), "create the bucket, or correct ENGINE_S3_BUCKET and ENGINE_S3_REGION"),
    (
        ("AccessDenied", "Forbidden"),
        "let the key read, write, list and delete in ENGINE_S3_BUCKET (its policy)",
    ),
    (
        ("Could not connect to the endpoint", "timed out"),
        "correct ENGINE_S3_ENDPOINT, or start the server there",
    ),
    (
        ("No space left", "InsufficientStorage", "QuotaExceeded"),
        "make room where artifacts are stored: ENGINE_HOME, or ENGINE_S3_BUCKET",
    ),
)


def findings() -> Iterator[Finding]:
    """Each part in turn; one that fails does not keep the others from being looked at."""
    for part, look in PARTS.items():
        try:
            yield look(part)
        except (DatabaseError, InterfaceError, psycopg.Error) as error:
            yield Finding(part, False, first_line(error), database_remedy(error))
        except ImproperlyConfigured as error:
            yield Finding(part, False, str(error), "see the message")


def database_remedy(error: BaseException) -> str:
    """What to do about a database that refuses."""
    if "startup parameter" in str(error):  # PgBouncer's words
        return "DATABASE_URL is a pooler: set ENGINE_DIRECT_DATABASE_URL to the database itself"
    if isinstance(error, ProgrammingError):  # a table is missing
        return "python manage.py migrate"
    said = str(error).lower()
    return next(
        (remedy for words, remedy in REFUSALS if words in said), "start PostgreSQL, or set DATABASE_URL"
    )


def storage_remedy(error: BaseException) -> str:
    """What to do about a storage that refuses, by the name that S3 or the kernel has for it."""
    said = str(error)
    found = (remedy for words, remedy in STORAGE_REFUSALS if any(word in said for word in words))
    return next(
        found,
        "make the artifacts' storage writable; for a bucket check ENGINE_S3_* and AWS_*, and its policy",
    )


def database(part: str) -> Finding:
    """Version, pgvector and durability."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, "
            "current_setting('fsync'), "
            "current_setting('synchronous_commit'), current_setting('full_page_writes'), "
            "(SELECT max(version) FROM pg_available_extension_versions WHERE name = 'vector')"
        )
        version, number, fsync, commit, pages, vector = cursor.fetchone()
    where = "embedded" if is_embedded() else "from DATABASE_URL"
    detail = f"PostgreSQL {version} ({where}), pgvector {vector or 'missing'}"
    if number < OLDEST_POSTGRES:
        return Finding(part, False, detail, "use PostgreSQL 15 or later")
    if vector is None:
        return Finding(part, False, detail, "install pgvector on the database server")
    if "off" in (fsync, commit, pages):
        remedy = "switch fsync, full_page_writes and synchronous_commit on: a crash loses jobs now"
        return Finding(part, False, detail, remedy)
    return Finding(part, True, detail)


def tables(part: str) -> Finding:
    """Whether every migration has run."""
    missing = not health.migrations()["ok"]
    return Finding(
        part,
        not missing,
        "missing" if missing else "up to date",
        "python manage.py migrate" if missing else "",
    )


def clock(part: str) -> Finding:
    """How far this machine's clock is from the database's, which is the one that counts."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        drift = abs(cursor.fetchone()[0] - timezone.now())
    detail = f"{drift.total_seconds():.1f} s apart from the database's"
    return Finding(
        part, drift < MOST_CLOCK_DRIFT, detail, "" if drift < MOST_CLOCK_DRIFT else "synchronise it by NTP"
    )


def pooling(part: str) -> Finding:
    """Whether poolers stand only where they can, and the limits of sessions hold behind one."""
    if problem := pooling_problem():
        refused, _, remedy = problem.partition(": ")
        return Finding(part, False, refused, remedy)
    if settings.DIRECT_DATABASE is None:
        return Finding(part, True, "none, or one that keeps sessions")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_user, name FROM pg_settings WHERE setting = '0'"
            " AND name IN ('lock_timeout', 'idle_in_transaction_session_timeout')"
        )
        unlimited = cursor.fetchall()
    if unlimited:
        remedy = "; ".join(
            f"ALTER ROLE {role} SET {name} = '{POOLED_LIMITS[name]}'" for role, name in unlimited
        )
        return Finding(
            part, False, "the pooler's sessions have no limits: a lock may be waited for forever", remedy
        )
    return Finding(part, True, "DATABASE_URL through a pooler, LISTEN past it")


def notifications(part: str) -> Finding:
    """Whether LISTEN works on the direct connection; a pooler in transaction mode swallows it.

    What is said goes the other way, over DATABASE_URL: two addresses of two databases are found out by it, too.
    """
    with psycopg.connect(direct_dsn(), autocommit=True) as listener, connection.cursor() as cursor:
        listener.execute("LISTEN engine_doctor")
        cursor.execute("SELECT pg_notify('engine_doctor', '')")
        heard = next(listener.notifies(timeout=2, stop_after=1), None) is not None
    if heard:
        way = "past a pooler" if settings.DIRECT_DATABASE is not None else "on one connection"
        return Finding(part, True, f"heard, {way}")
    remedy = "set ENGINE_DIRECT_DATABASE_URL to the same database, past the pooler"
    return Finding(part, False, "not heard: jobs start up to a second later, live logs lag", remedy)


def sandbox(part: str) -> Finding:
    """Open a sandbox, and let a program in it try to leave."""

    async def probe() -> Finding:
        provider = provider_from_settings()
        try:
            found = await provider.start()
        finally:
            await provider.close()
        return Finding(part, found.ok, f"{found.name}: {found.detail}", found.remedy)

    return asyncio.run(probe())


def embedder(part: str) -> Finding:
    """Whether the model that discovery reads tasks with answers."""
    try:
        vector = embeddings.configured().embed_query("Analyze the sentiment of customer reviews")
    except EngineError as error:
        remedy = (
            "make install"
            if settings.ENGINE_EMBEDDER == "local"
            else "check ENGINE_EMBEDDER and its variables"
        )
        return Finding(part, False, error.detail, remedy)
    return Finding(part, True, f"{settings.ENGINE_EMBEDDER}, {len(vector)} dimensions")


def storage(part: str) -> Finding:
    """Write, read and delete a file where artifacts go."""
    artifacts = storages["artifacts"]
    where = f"bucket {settings.ENGINE_S3_BUCKET}" if settings.ENGINE_S3_BUCKET else type(artifacts).__name__
    try:
        name = artifacts.save("doctor", ContentFile(b"well"))
        with artifacts.open(name) as file:
            same = file.read() == b"well"
        artifacts.delete(name)
    except Exception as error:  # each storage backend raises classes of its own
        return Finding(part, False, first_line(error), storage_remedy(error))
    return Finding(part, same, where, "" if same else "the storage returns other bytes")


def channels(part: str) -> Finding:
    """Send a message through the channel layer."""
    layer = channel_layers["default"]
    where = "Redis" if settings.REDIS_URL else "in memory (REDIS_URL is not set)"

    async def exchange() -> bool:
        async with asyncio.timeout(REDIS_SECONDS):
            channel = await layer.new_channel()
            await layer.send(channel, {"type": "doctor"})
            heard: dict[str, Any] = await layer.receive(channel)
            return heard == {"type": "doctor"}

    try:
        heard = asyncio.run(exchange())
    except (OSError, TimeoutError, RedisError) as error:
        return Finding(part, False, first_line(error), "start Redis, or correct REDIS_URL")
    return Finding(part, heard, where, "" if heard else "start Redis, or correct REDIS_URL")


def shared_cache(part: str) -> Finding:
    """Write to the cache and read from it."""
    where = "Redis" if settings.REDIS_URL else "in memory of each process (REDIS_URL is not set)"
    try:
        cache.set("doctor", "well", 10)
        same = cache.get("doctor") == "well"
    except (OSError, RedisError) as error:
        return Finding(part, False, first_line(error), "start Redis, or correct REDIS_URL")
    return Finding(
        part, same, where, "" if same else "raise Redis' maxmemory: it drops what it was just given"
    )


def disk(part: str) -> Finding:
    """Room under ENGINE_HOME."""
    free = shutil.disk_usage(settings.ENGINE_HOME).free
    enough = free >= LEAST_FREE_BYTES
    detail = f"{free / 1024**3:.1f} GB free under {settings.ENGINE_HOME}"
    return Finding(part, enough, detail, "" if enough else "make room, or move ENGINE_HOME")


def workers(part: str) -> Finding:
    """Whether somebody runs jobs."""
    found = health.workers()
    return Finding(
        part, found["ok"], found.get("detail", "at least one can run jobs"), found.get("remedy", "")
    )


def model_api(part: str) -> Finding:
    """Whether agents that think with a model can run; they are not needed."""
    if not (settings.OPENAI_API_KEY or settings.OPENAI_BASE_URL):
        return Finding(part, True, "none: agents of kind llm are not offered (OPENAI_API_KEY)")
    where = settings.OPENAI_BASE_URL or "https://api.openai.com/v1"
    headers = {"Authorization": f"Bearer {settings.OPENAI_API_KEY}"}
    try:
        answer = httpx.get(f"{where.rstrip('/')}/models", headers=headers, timeout=MODEL_SECONDS)
    except httpx.HTTPError as error:
        return Finding(
            part, False, f"{where}: {first_line(error)}", "check OPENAI_BASE_URL and the way there"
        )
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Finding(part, False, f"{where} refuses the key", "set OPENAI_API_KEY to a key that it knows")
    # Not every compatible server lists its models: one that answers at all is there.
    well = answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
    detail = f"{where} answers {answer.status_code}"
    return Finding(part, well, detail, "" if well else "look at the model server's log")


def e2b(part: str) -> Finding:
    """Whether E2B is set up where it is wanted; the sandbox's own line has tried it."""
    if settings.ENGINE_SANDBOX != "e2b":
        return Finding(part, True, "not used (ENGINE_SANDBOX)")
    if not settings.E2B_API_KEY:
        return Finding(part, False, "E2B_API_KEY is not set", "set E2B_API_KEY to a key of your E2B team")
    return Finding(part, True, f"{settings.ENGINE_E2B_SANDBOXES} sandboxes at once, see the line sandbox")


PARTS: dict[str, Callable[[str], Finding]] = {
    "database": database,
    "tables": tables,
    "clock": clock,
    "pooling": pooling,
    "notifications": notifications,
    "sandbox": sandbox,
    "embedder": embedder,
    "artifacts": storage,
    "channel layer": channels,
    "cache": shared_cache,
    "disk": disk,
    "workers": workers,
    "E2B": e2b,
    "model API": model_api,
}


def first_line(error: BaseException) -> str:
    """The gist of a driver's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
