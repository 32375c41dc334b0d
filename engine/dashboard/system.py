"""The system page: how each part is, as this web process sees it, and which versions run."""

import platform
import socket
from typing import Any

import django
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from apikeys.scopes import Scope
from engine import __version__, readiness
from engine.dashboard.access import acting
from engine.dashboard.live import parts, wants_parts
from engine.diagnosis import State
from jobs.models import Worker
from jobs.services import database_time

PARTS = {"system": "engine/system/parts.html"}
MOST_VERSIONS = 20


def system(request: HttpRequest) -> HttpResponse:
    """A line for each part, those that need somebody first; asks nothing that could hang."""
    acting(request, Scope.ADMIN_WORKERS)
    found = readiness.readings()
    now = database_time()
    alive = Worker.objects.filter(stopped_at__isnull=True, lease_until__gt=now)
    order = [State.FAILED, State.DEGRADED, State.UNKNOWN, State.OK, State.OFF]
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "System",
        "now": now,
        "readings": sorted(found, key=lambda reading: order.index(reading.state)),
        "troubles": sum(reading.needs_somebody for reading in found),
        "used": sum(reading.state != State.OFF for reading in found),
        "is_ready": all(reading.is_ready for reading in found),
        "host": socket.gethostname(),
        "workers": alive.count(),
        "worker_versions": list(
            alive.order_by("version").values_list("version", flat=True).distinct()[:MOST_VERSIONS]
        ),
        "versions": [
            ("Engine", __version__),
            ("Python", platform.python_version()),
            ("Django", django.get_version()),
        ],
    }
    if wants_parts(request):
        return parts(request, PARTS, context)
    return TemplateResponse(request, "engine/system/page.html", context)
