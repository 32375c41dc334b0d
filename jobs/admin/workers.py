"""Workers: who is alive by the database's clock, how busy, and what to do about one that cannot run jobs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.dashboard.live import parts, wants_parts
from jobs.models import Worker
from jobs.services import database_time

PARTS = {"workers": "jobs/workers/list.html"}
# Workers that are gone stay in sight this long: somebody may ask what became of one.
REMEMBERED = timedelta(hours=24)
MOST_WORKERS = 200


@dataclass(frozen=True)
class WorkerRow:
    """A worker as the page shows it."""

    worker: Worker
    state: str  # alive | draining | unable | stopped | lost

    @property
    def sandbox(self) -> dict[str, Any]:
        """What its sandbox's probe said: ok, name, detail, remedy."""
        found = self.worker.health.get("sandbox")
        return found if isinstance(found, dict) else {}

    @property
    def is_here(self) -> bool:
        """Whether it holds its lease."""
        return self.state in ("alive", "draining", "unable")


def state_of(worker: Worker, now: datetime) -> str:
    """Where a worker stands at the database's `now`."""
    if worker.stopped_at is not None:
        return "stopped"
    if worker.lease_until <= now:
        return "lost"
    if worker.drain_requested_at is not None:
        return "draining"
    return "alive" if worker.can_run else "unable"


@admin.register(Worker)
class WorkerAdmin(ListAdmin):
    """Processes that run jobs."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All that live, and those that went in the last day."""
        acting(request, Scope.ADMIN_WORKERS)
        now = database_time()
        recent = Worker.objects.filter(
            Q(stopped_at__isnull=True, lease_until__gt=now) | Q(heartbeat_at__gt=now - REMEMBERED)
        )
        rows = [
            WorkerRow(worker, state_of(worker, now))
            for worker in recent.order_by("-started_at")[:MOST_WORKERS]
        ]
        here = [row for row in rows if row.is_here]
        context = {
            **self.admin_site.each_context(request),
            "title": "Workers",
            "now": now,
            "here": here,
            "gone": [row for row in rows if not row.is_here],
            "slots": sum(row.worker.slots for row in here),
            "running": sum(row.worker.running for row in here),
        }
        if wants_parts(request):
            return parts(request, PARTS, context)
        return TemplateResponse(request, "jobs/workers/page.html", context)
