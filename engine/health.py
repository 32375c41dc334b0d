"""Whether this process lives, and whether Engine can run jobs."""

import functools
import shutil
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any, TypedDict

from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from redis.exceptions import RedisError

from agents import discovery
from jobs.models import Worker

LEAST_FREE_BYTES = 64 * 1024**2


class Part(TypedDict, total=False):
    """One part's state; `detail` and `remedy` are there when it is not well, `degraded` where it goes on with less."""

    ok: bool
    degraded: bool
    detail: str
    remedy: str


class HealthMiddleware:
    """Answers `/health/live` and `/health/ready` before hosts, TLS redirects and sessions are looked at.

    A probe calls a container by its address, which is no host of ours.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a probe, or pass the request on."""
        if not request.path_info.startswith("/health/") or request.method not in ("GET", "HEAD"):
            return self.get_response(request)
        match request.path_info:
            case "/health/live":
                return answer({})
            case "/health/ready":
                # A balancer's question: a web process takes jobs while no worker is there to run them.
                without = request.GET.get("without", "").split(",")
                return answer(readiness(without=without))
            case _:
                return self.get_response(request)


def answer(parts: dict[str, Part]) -> JsonResponse:
    """200 with the parts if all are well, else 503."""
    ready = all(part["ok"] for part in parts.values())
    body: dict[str, Any] = {"status": "ok" if ready else "unavailable"}
    if any(part.get("degraded") for part in parts.values()):
        body["degraded"] = True
    body["parts"] = parts
    response = JsonResponse(body, status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
    response["Cache-Control"] = "no-store"
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django's flag: a probe each second is no news
    return response


def readiness(*, without: Collection[str] = ()) -> dict[str, Part]:
    """The parts that a job needs, each asked now. Answers fast: no part after the first that fails is asked."""
    parts: dict[str, Part] = {}
    asked: dict[str, Callable[[], Part]] = {
        "database": database,
        "migrations": migrations,
        "disk": disk,
        "workers": workers,
        "discovery": discover,
    }
    if settings.REDIS_URL:
        asked["redis"] = redis
    for name, ask in asked.items():
        if name in without:
            continue
        try:
            parts[name] = ask()
        except (DatabaseError, InterfaceError) as error:
            parts[name] = {"ok": False, "detail": type(error).__name__, "remedy": "Start PostgreSQL."}
        if not parts[name]["ok"]:
            break
    return parts


def database() -> Part:
    """Whether the database answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return {"ok": True}


def migrations() -> Part:
    """Whether the database has every table that this release needs."""
    if _migrated():
        return {"ok": True}
    _migrated.cache_clear()  # ask again next time; only a yes lasts
    return {"ok": False, "detail": "Migrations are missing.", "remedy": "Run manage.py migrate."}


def disk() -> Part:
    """Whether there is room to write: uploads are spooled here, wherever they go."""
    if shutil.disk_usage(settings.ENGINE_HOME).free >= LEAST_FREE_BYTES:
        return {"ok": True}
    return {"ok": False, "detail": "The disk of ENGINE_HOME is full.", "remedy": "Make room, or move it."}


def discover() -> Part:
    """Whether agents are found by meaning. Without the embedding model their words decide: that is still ready."""
    if why := discovery.degraded():
        remedy = "Run manage.py doctor. Until then agents are found by their words alone."
        return {"ok": True, "degraded": True, "detail": why, "remedy": remedy}
    return {"ok": True}


def redis() -> Part:
    """Whether Redis answers. Without it wake-ups come by polling and counters from PostgreSQL: that is still ready."""
    try:
        cache.get("health")
    except (OSError, RedisError):
        detail = "Redis does not answer: jobs start up to a second later."
        return {
            "ok": True,
            "degraded": True,
            "detail": detail,
            "remedy": "Start Redis, or correct REDIS_URL.",
        }
    return {"ok": True}


@functools.cache
def _migrated() -> bool:
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def workers() -> Part:
    """Whether at least one live worker has a sandbox that works."""
    alive = Worker.objects.filter(lease_until__gt=Now(), stopped_at=None, drain_requested_at=None)
    if alive.filter(can_run=True).exists():
        return {"ok": True}
    latest = alive.order_by("-heartbeat_at").first()
    if latest is not None:
        said = latest.health.get("sandbox") or {}
        detail = "No live worker has a sandbox that works"
        detail += f": {said['detail']}." if said.get("detail") else " yet."
        return {"ok": False, "detail": detail, "remedy": said.get("remedy") or "Run manage.py doctor."}
    return {"ok": False, "detail": "No live worker.", "remedy": "Run manage.py runworker."}
