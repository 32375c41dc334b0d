"""Queues and workers: what waits, who runs it by the database's clock, and holding either back."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST

from apikeys.scopes import Scope
from engine.dashboard.access import acting, acting_with
from engine.dashboard.lists import ListAdmin
from engine.dashboard.live import parts, wants_parts
from engine.errors import NotFound
from jobs import backlog, pausing
from jobs.models import Attempt, Job, SandboxSlot, Worker
from jobs.serializers import QUEUE_NAME
from jobs.services import database_time

PARTS = {"workers": "jobs/workers/list.html"}
# Workers that are gone stay in sight this long: somebody may ask what became of one.
REMEMBERED = timedelta(hours=24)
MOST_WORKERS = 200
MOST_SANDBOXES = 100


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
    def memory_mb(self) -> float | None:
        """What the worker itself has taken of memory, in MiB; its sandboxes have limits of their own."""
        found = self.worker.health.get("memory_mb")
        return found if isinstance(found, int | float) else None

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


@dataclass(frozen=True)
class SandboxRow:
    """A sandbox that holds a running attempt."""

    job: Job
    attempt: Attempt | None  # None until its sandbox has opened
    worker: Worker


@admin.register(Worker)
class WorkerAdmin(ListAdmin):
    """Processes that run jobs, and the queues they take them from."""

    def get_urls(self) -> list[URLPattern]:
        """The page, and what its buttons do."""
        own = self.admin_site.admin_view
        return [
            path("", own(self.changelist_view), name="jobs_worker_changelist"),
            path("<uuid:worker_id>/drain/", own(drain), name="jobs_worker_drain"),
            path("queues/<str:name>/<slug:action>/", own(hold_queue), name="jobs_queue_hold"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Queues with their depth; all workers that live, and those that went in the last day."""
        by = acting(request, Scope.ADMIN_WORKERS)
        now = database_time()
        recent = Worker.objects.filter(
            Q(stopped_at__isnull=True, lease_until__gt=now) | Q(heartbeat_at__gt=now - REMEMBERED)
        )
        rows = [
            WorkerRow(worker, state_of(worker, now))
            for worker in recent.order_by("-started_at")[:MOST_WORKERS]
        ]
        here = [row for row in rows if row.is_here]
        queues = backlog.queues(by)
        context = {
            **self.admin_site.each_context(request),
            "title": "Queues and workers",
            "now": now,
            "here": here,
            "gone": [row for row in rows if not row.is_here],
            "slots": sum(row.worker.slots for row in here),
            "running": sum(row.worker.running for row in here),
            "queues": queues,
            "priorities": [*reversed(Job.Priority.values), "returning"],
            "projects": backlog.projects([queue.state.name for queue in queues]),
            "sandboxes": _sandboxes([row.worker for row in here]),
            "parked": SandboxSlot.objects.filter(parked_at__isnull=False, expires_at__gt=now).count(),
            "may_hold_queues": request.user.has_perm("jobs.change_queue"),
            "may_drain": request.user.has_perm("jobs.change_worker"),
        }
        if wants_parts(request):
            return parts(request, PARTS, context)
        return TemplateResponse(request, "jobs/workers/page.html", context)


def _sandboxes(workers: list[Worker]) -> list[SandboxRow]:
    """What the workers' sandboxes hold, the longest running first."""
    by_id = {worker.id: worker for worker in workers}
    held = Job.objects.filter(status=Job.Status.RUNNING, worker_id__in=by_id)
    jobs = list(held.select_related("agent_version__agent").defer("agent_version__source")[:MOST_SANDBOXES])
    attempts = {
        (attempt.job_id, attempt.number): attempt
        for attempt in Attempt.objects.filter(job__in=jobs, ended_at=None)
    }
    rows = [
        SandboxRow(job, attempts.get((job.id, job.attempt)), by_id[job.worker_id])
        for job in jobs
        if job.worker_id in by_id
    ]
    return sorted(rows, key=lambda row: row.job.started_at or row.job.created_at)


@require_POST
def hold_queue(request: HttpRequest, name: str, action: str) -> HttpResponse:
    """Pause a queue, or open it again."""
    by = acting_with(request, "jobs.change_queue")
    if re.fullmatch(QUEUE_NAME, name) is None:
        raise Http404
    match action:
        case "pause":
            pausing.pause_queue(name, by=by)
            messages.success(request, f"The queue {name} is paused: its jobs wait, and those that run go on.")
        case "resume":
            pausing.resume_queue(name, by=by)
            messages.success(request, f"The queue {name} is open again.")
        case _:
            raise Http404
    return redirect("admin:jobs_worker_changelist")


@require_POST
def drain(request: HttpRequest, worker_id: UUID) -> HttpResponse:
    """Let a worker finish and end."""
    by = acting_with(request, "jobs.change_worker")
    try:
        worker = pausing.drain_worker(worker_id, by=by)
    except NotFound as error:
        raise Http404 from error
    messages.success(request, f"{worker} takes no more jobs and ends when it has none.")
    return redirect("admin:jobs_worker_changelist")
