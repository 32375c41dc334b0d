"""The parts that Engine needs or uses: whether each works, and what mends it.

The one list, `PARTS`: `manage.py doctor` looks at each thoroughly, `engine.readiness` as fast as a probe wants it.
"""

import asyncio
import functools
import logging
import shutil
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
from channels.layers import channel_layers
from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models.functions import Now
from django.utils import timezone

from agents import discovery as agents_discovery
from agents import embeddings
from agents.indexing import active_space
from engine.database import direct_dsn, is_embedded, pooling_problem
from engine.embedded import EmbeddedServerFailed
from engine.errors import EngineError
from engine.redis_errors import or_redis_errors
from engine.remedies import database_remedy, first_line, refuses_as_pooler, storage_remedy
from jobs.models import Worker
from jobs.sandboxes.base import SandboxError
from jobs.sandboxes.registry import provider_from_settings

logger = logging.getLogger(__name__)

OLDEST_POSTGRES = 150_000  # server_version_num: unique constraints with NULLS NOT DISTINCT
OLDEST_PGVECTOR = (0, 8)  # large registries scan their index iteratively
# Below the first number uploads, which are spooled to disk, fail soon; below the second nothing can be written.
LITTLE_ROOM, NO_ROOM = 2 * 1024**3, 64 * 1024**2
# What SESSION_TIMEOUTS are where no pooler is.
POOLED_LIMITS = {"lock_timeout": "2s", "idle_in_transaction_session_timeout": "10s"}
REDIS_SECONDS = 2.0
OUTSIDE_SECONDS = 5.0
MOST_CLOCK_DRIFT = timedelta(seconds=2)


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    DEGRADED = "degraded"  # it goes on with less, or at a risk
    FAILED = "failed"
    OFF = "off"  # not used here
    UNKNOWN = "unknown"  # nobody has looked yet


@dataclass(frozen=True)
class Finding:
    """How one part is. `remedy` is a command or a setting; it is there when the part does not work."""

    part: str
    state: State
    detail: str  # for those who run Engine: names versions, hosts, buckets
    remedy: str = ""
    public: str = ""  # what of it everybody may read

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend."""
        return self.state in (State.OK, State.OFF)


Look = Callable[[str], Finding]
# What a database that is away, or not ours, makes of any look at it.
DATABASE_AWAY = (DatabaseError, InterfaceError, psycopg.Error, EmbeddedServerFailed)


@dataclass(frozen=True)
class Part:
    """One thing that Engine needs or uses, and how it is looked at."""

    look: Look  # what the doctor does
    without: str  # what it means when the part does not work, for everybody to read
    is_needed: bool = False  # without it no job can be taken or run
    title: str = ""  # its name for people, where that is not the name in JSON with spaces
    glance: Look | None = None  # what a probe does in place of `look`
    every: float = 0.0  # seconds between the looks for probes, away from them; 0: each probe looks


def title(part: str) -> str:
    """A part's name as people write it."""
    return PARTS[part].title or part.replace("_", " ")


def findings() -> Iterator[Finding]:
    """Each part in turn; one that fails does not keep the others from being looked at."""
    away = is_pooler = False
    for name, part in PARTS.items():
        # A pooler that refuses sessions is no database that is away: the line about poolers says which variable it is.
        if away and part.look in ASKS_DATABASE and not (name == "pooling" and is_pooler):
            yield Finding(name, State.UNKNOWN, "not looked at: the database is away")
            continue
        found = safely(name, part.look)
        if is_away(found):
            away, is_pooler = True, refuses_as_pooler(found.detail)
        yield found


NO_ANSWER = "no answer: "


def is_away(found: Finding) -> bool:
    """Whether this says that the database does not answer at all: nothing else there needs to be asked then."""
    return found.part == "database" and found.detail.startswith(NO_ANSWER)


def safely(name: str, look: Look) -> Finding:
    """What a look finds; what it cannot find out is a failed part too."""
    try:
        return look(name)
    except DATABASE_AWAY as error:
        said = NO_ANSWER + first_line(error) if name == "database" else first_line(error)
        return Finding(name, State.FAILED, said, database_remedy(error))
    except ImproperlyConfigured as error:
        return Finding(name, State.FAILED, first_line(error), "see the message")
    except Exception as error:  # whatever a library raises: the other parts are to be looked at all the same
        logger.debug("Looking at the part %s failed", name, exc_info=True)
        said = f"{type(error).__name__}: {first_line(error)}"
        return Finding(name, State.FAILED, said, "LOG_LEVEL=DEBUG python manage.py doctor says where")


# --- the database ---


def database(part: str) -> Finding:
    """Version, pgvector and durability."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int,"
            " ARRAY(SELECT name FROM pg_settings WHERE setting = 'off'"
            " AND name IN ('fsync', 'full_page_writes', 'synchronous_commit')),"
            # What is installed; before `migrate` has installed it, what could be.
            " coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " (SELECT max(version) FROM pg_available_extension_versions WHERE name = 'vector'))"
        )
        version, number, off, vector = cursor.fetchone()
    where = "embedded" if is_embedded() else "from DATABASE_URL"
    risks = f"{', '.join(off)} off" if off else "fsync on"
    well = Finding(
        part,
        State.OK,
        f"PostgreSQL {version} ({where}), pgvector {vector or 'missing'}, {risks}",
        public=f"PostgreSQL {number // 10_000}, pgvector {'there' if vector else 'missing'}, {risks}",
    )
    if number < OLDEST_POSTGRES:
        return replace(well, state=State.FAILED, remedy="use PostgreSQL 15 or later")
    if vector is None:
        return replace(well, state=State.FAILED, remedy="install pgvector on the database server")
    if off:
        remedy = f"switch {', '.join(off)} on in the database: a crash loses jobs now"
        return replace(well, state=State.DEGRADED, remedy=remedy)
    if tuple(int(number) for number in vector.split(".")[:2]) < OLDEST_PGVECTOR:
        remedy = "update pgvector to 0.8 or later: the index of a large registry needs it"
        return replace(well, state=State.DEGRADED, remedy=remedy)
    return well


def migrations(part: str) -> Finding:
    """Whether the database has every table that this release needs."""
    if _migrated():
        return Finding(part, State.OK, "all have run")
    _migrated.cache_clear()  # ask again next time; only a yes lasts
    return Finding(part, State.FAILED, "missing", "Run manage.py migrate.")


@functools.cache
def _migrated() -> bool:
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def clock(part: str) -> Finding:
    """How far this machine's clock is from the database's, which is the one that counts."""
    with connection.cursor() as cursor:
        before = timezone.now()
        cursor.execute("SELECT clock_timestamp()")
        there = cursor.fetchone()[0]
    # It was read between two looks at ours: what lies within them is no drift.
    drift = max(before - there, there - timezone.now(), timedelta())
    detail = f"{drift.total_seconds():.1f} s apart from the database's"
    if drift < MOST_CLOCK_DRIFT:
        return Finding(part, State.OK, detail)
    return Finding(part, State.FAILED, detail, "synchronise the clocks of both machines by NTP")


def pooling(part: str) -> Finding:
    """Whether poolers stand only where they can, and the limits of sessions hold behind one."""
    if problem := pooling_problem():
        refused, _, remedy = problem.partition(": ")
        return Finding(part, State.FAILED, refused, remedy)
    if settings.DIRECT_DATABASE is None:
        return Finding(part, State.OK, "none, or one that keeps sessions")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name FROM pg_settings WHERE setting = '0'"
            " AND name IN ('lock_timeout', 'idle_in_transaction_session_timeout')"
        )
        unlimited = [name for (name,) in cursor.fetchall()]
    if unlimited:
        remedy = "; ".join(
            f"ALTER ROLE CURRENT_USER SET {name} = '{POOLED_LIMITS[name]}'" for name in unlimited
        )
        detail = "the pooler's sessions have no limits: a lock may be waited for forever"
        return Finding(part, State.FAILED, detail, remedy)
    return Finding(part, State.OK, "DATABASE_URL through a pooler, LISTEN past it")


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
        return Finding(part, State.OK, f"heard, {way}")
    remedy = "set ENGINE_DIRECT_DATABASE_URL to the same database, past the pooler"
    return Finding(part, State.FAILED, "not heard: jobs start up to a second later, live logs lag", remedy)


# --- what runs jobs ---


def sandbox(part: str) -> Finding:
    """Open a sandbox, and let a program in it try to leave."""

    async def probe() -> Finding:
        provider = provider_from_settings()
        try:
            found = await provider.start()
        finally:
            await provider.close()
        state = State.OK if found.ok else State.FAILED
        return Finding(part, state, f"{found.name}: {found.detail}", found.remedy)

    return asyncio.run(probe())


def workers_sandbox(part: str) -> Finding:
    """What the workers say of their sandboxes: a web host has none of its own."""
    alive = Worker.objects.filter(lease_until__gt=Now(), stopped_at=None, drain_requested_at=None)
    worker = alive.order_by("-can_run", "-heartbeat_at").first()
    if worker is None:
        return Finding(part, State.UNKNOWN, "no live worker has looked")
    said = worker.health.get("sandbox") or {}
    detail = f"{said.get('name', 'sandbox')}: {said.get('detail') or 'no word of it yet'}"
    if worker.can_run:
        return Finding(part, State.OK, detail)
    return Finding(part, State.FAILED, detail, said.get("remedy") or "Run manage.py doctor.")


def workers(part: str) -> Finding:
    """Whether at least one live worker has a sandbox that works."""
    alive = Worker.objects.filter(lease_until__gt=Now(), stopped_at=None, drain_requested_at=None)
    able = alive.filter(can_run=True).count()
    if able:
        return Finding(part, State.OK, f"{able} can run jobs")
    latest = alive.order_by("-heartbeat_at").first()
    if latest is None:
        return Finding(
            part, State.FAILED, "No live worker.", "Run manage.py runworker.", public="No live worker."
        )
    said = latest.health.get("sandbox") or {}
    detail = "No live worker has a sandbox that works"
    detail += f": {said['detail']}." if said.get("detail") else " yet."
    return Finding(part, State.FAILED, detail, said.get("remedy") or "Run manage.py doctor.", public=detail)


def e2b(part: str) -> Finding:
    """Whether E2B takes our key."""
    if settings.ENGINE_SANDBOX != "e2b":
        return Finding(part, State.OFF, "not used (ENGINE_SANDBOX)")
    if not settings.E2B_API_KEY:
        return Finding(
            part, State.FAILED, "E2B_API_KEY is not set", "set E2B_API_KEY to a key of your E2B team"
        )
    from jobs.sandboxes.e2b.provider import E2BProvider  # an extra: not every installation has its packages

    provider = provider_from_settings()
    assert isinstance(provider, E2BProvider)  # noqa: S101, the setting says so
    try:
        asyncio.run(provider.ask(seconds=OUTSIDE_SECONDS))
    except SandboxError as error:
        remedy = getattr(error, "remedy", "") or "see whether this machine reaches E2B, and E2B's status page"
        return Finding(part, State.FAILED, first_line(error), remedy)
    return Finding(part, State.OK, f"takes the key; {settings.ENGINE_E2B_SANDBOXES} sandboxes at once")


def model_api(part: str) -> Finding:
    """Whether agents that think with a model can run; they are not needed."""
    if not (settings.OPENAI_API_KEY or settings.OPENAI_BASE_URL):
        return Finding(part, State.OFF, "none: agents of kind llm are not offered (OPENAI_API_KEY)")
    address = settings.OPENAI_BASE_URL or "https://api.openai.com/v1"
    where = urlsplit(address).netloc.rpartition("@")[2]
    headers = {"Authorization": f"Bearer {settings.OPENAI_API_KEY}"} if settings.OPENAI_API_KEY else {}
    try:
        answer = httpx.get(f"{address.rstrip('/')}/models", headers=headers, timeout=OUTSIDE_SECONDS)
    except httpx.HTTPError as error:
        remedy = "check OPENAI_BASE_URL and the way there"
        return Finding(part, State.FAILED, f"{where}: {first_line(error)}", remedy)
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Finding(
            part, State.FAILED, f"{where} refuses the key", "set OPENAI_API_KEY to a key that it knows"
        )
    detail = f"{where} answers {answer.status_code}"
    if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        return Finding(part, State.DEGRADED, detail, "raise the limit of that key at the model server")
    # Not every compatible server lists its models: one that answers at all is there.
    if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Finding(part, State.OK, detail)
    return Finding(part, State.FAILED, detail, "look at the model server's log")


def traces(part: str) -> Finding:
    """Whether the collector takes spans: it is sent none of them, in the form that it takes them in."""
    address = settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
    if not address:
        return Finding(part, State.OFF, "none are sent (OTEL_EXPORTER_OTLP_ENDPOINT)")
    where = urlsplit(address).netloc.rpartition("@")[2]
    headers = {**settings.OTEL_EXPORTER_OTLP_HEADERS, "Content-Type": "application/x-protobuf"}
    try:
        trusted = ssl.create_default_context(cafile=settings.OTEL_EXPORTER_OTLP_CERTIFICATE or None)
        answer = httpx.post(address, content=b"", headers=headers, timeout=OUTSIDE_SECONDS, verify=trusted)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "check OTEL_EXPORTER_OTLP_ENDPOINT and the way there"
        return Finding(part, State.FAILED, f"{where}: {first_line(error)}", remedy)
    if answer.is_success:
        return Finding(part, State.OK, f"{where} takes spans")
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        remedy = "set OTEL_EXPORTER_OTLP_HEADERS to what the collector asks for"
    elif answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        remedy = "check that OTEL_EXPORTER_OTLP_ENDPOINT is where it takes OTLP over HTTP (mostly port 4318)"
    else:
        remedy = "look at the collector's log"
    return Finding(part, State.FAILED, f"{where} answers {answer.status_code}", remedy)


# --- discovery ---


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
        return Finding(part, State.FAILED, error.detail, remedy)
    return Finding(part, State.OK, f"{settings.ENGINE_EMBEDDER}, {len(vector)} dimensions")


def discovery(part: str) -> Finding:
    """Whether agents are found by meaning, after a task that is asked now."""
    agents_discovery.warm_up()
    found = discovery_lately(part)
    space = active_space()
    return replace(found, detail=f"by meaning, in {space.name}") if found.ok and space is not None else found


def discovery_lately(part: str) -> Finding:
    """Whether agents are found by meaning. Without the embedding model their words decide: that is still ready."""
    if why := agents_discovery.degraded():
        remedy = "Run manage.py doctor. Until then agents are found by their words alone."
        return Finding(part, State.DEGRADED, why, remedy, public=why)
    return Finding(part, State.OK, "by meaning")


# --- files and Redis ---


def storage(part: str) -> Finding:
    """Write, read and delete a file where artifacts go."""
    artifacts = storages["artifacts"]
    where = f"bucket {settings.ENGINE_S3_BUCKET}" if settings.ENGINE_S3_BUCKET else type(artifacts).__name__
    try:
        name = artifacts.save(f"doctor/{uuid4()}", ContentFile(b"well"))  # others look at the same time
        with artifacts.open(name) as file:
            same = file.read() == b"well"
        artifacts.delete(name)
    except Exception as error:  # each storage backend raises classes of its own
        return Finding(part, State.FAILED, first_line(error), storage_remedy(error))
    if same:
        return Finding(part, State.OK, where)
    return Finding(part, State.FAILED, where, "the storage returns other bytes than it was given")


REDIS_REMEDY = "start Redis, or correct REDIS_URL"


def channel_layer(part: str) -> Finding:
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
    except or_redis_errors(OSError, TimeoutError) as error:
        return Finding(part, State.FAILED, first_line(error), REDIS_REMEDY)
    return Finding(part, State.OK, where) if heard else Finding(part, State.FAILED, where, REDIS_REMEDY)


def shared_cache(part: str) -> Finding:
    """Write to the cache and read from it."""
    where = "Redis" if settings.REDIS_URL else "in memory of each process (REDIS_URL is not set)"
    key = f"doctor:{uuid4()}"
    try:
        cache.set(key, "well", 10)
        same = cache.get(key) == "well"
    except or_redis_errors(OSError) as error:
        return Finding(part, State.FAILED, first_line(error), REDIS_REMEDY)
    if same:
        return Finding(part, State.OK, where)
    return Finding(part, State.FAILED, where, "raise Redis' maxmemory: it drops what it was just given")


def disk(part: str) -> Finding:
    """Room under ENGINE_HOME: uploads are spooled here, wherever they go."""
    free = shutil.disk_usage(settings.ENGINE_HOME).free
    detail = f"{free / 1024**3:.1f} GB free under {settings.ENGINE_HOME}"
    if free >= LITTLE_ROOM:
        return Finding(part, State.OK, detail)
    state = State.FAILED if free < NO_ROOM else State.DEGRADED
    return Finding(part, state, detail, "make room, or move ENGINE_HOME")


PARTS: dict[str, Part] = {
    "database": Part(database, "The database does not answer.", is_needed=True),
    "migrations": Part(migrations, "Migrations are missing.", is_needed=True),
    "clock": Part(clock, "The clocks of the web host and the database differ."),
    "pooling": Part(pooling, "A pooler stands where Engine needs a session.", every=60.0),
    "notifications": Part(notifications, "LISTEN is not heard: jobs start up to a second later.", every=60.0),
    "sandbox": Part(sandbox, "No worker has a sandbox.", glance=workers_sandbox),
    "embedder": Part(embedder, "The embedding model does not answer.", every=60.0),
    "discovery": Part(
        discovery,
        "Agents are found by their words alone.",
        glance=discovery_lately,
    ),
    "storage": Part(storage, "Files cannot be stored or read.", every=30.0),
    "channel_layer": Part(channel_layer, "Redis does not answer.", every=10.0),
    "cache": Part(shared_cache, "Redis does not answer: jobs start up to a second later.", every=10.0),
    "disk": Part(disk, "The disk of ENGINE_HOME is nearly full.", is_needed=True),
    "workers": Part(workers, "No worker can run jobs.", is_needed=True),
    "e2b": Part(e2b, "E2B does not take our calls.", title="E2B", every=60.0),
    "model_api": Part(model_api, "The model API does not answer.", title="model API", every=60.0),
    "traces": Part(traces, "The collector takes no spans.", every=60.0),
}
# Looks at what is in the database: while that is away, they would only wait for it.
ASKS_DATABASE = {
    *(database, migrations, clock, pooling, notifications),
    *(workers_sandbox, workers, discovery),
}
