"""Cancel or retry many jobs at once: what was chosen is counted and shown, and done only after a second click."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.http import require_POST

from apikeys.callers import Caller
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.errors import EngineError
from jobs.admin import recorded
from jobs.admin.narrowing import canonical, found
from jobs.models import Job

# At once: each is a transaction of its own, and a person waits for the answer.
MOST_JOBS = 500
MOST_SHOWN = 10


@dataclass(frozen=True)
class Deed:
    """What may be done to many jobs."""

    name: str
    verb: str
    done: str
    statuses: tuple[str, ...]  # of the jobs it can be done to
    perform: Callable[..., Job]
    consequence: str


DEEDS = {
    "cancel": Deed(
        "cancel",
        "Cancel",
        "cancelled",
        (Job.Status.QUEUED, Job.Status.SCHEDULED, Job.Status.RUNNING, Job.Status.WAITING_FOR_INPUT),
        recorded.cancel,
        "What they have done so far stays, but they do not go on. A running one is told to stop.",
    ),
    "retry": Deed(
        "retry",
        "Retry",
        "retried",
        (Job.Status.FAILED, Job.Status.CANCELLED),
        recorded.retry,
        "Each becomes a new job that goes on where the old one stopped.",
    ),
}


@require_POST
def many(request: HttpRequest) -> HttpResponse:
    """The question first; with `confirmed`, the deed."""
    by = acting(request, Scope.JOBS_WRITE)
    deed = DEEDS.get(request.POST.get("deed", ""))
    if deed is None:
        raise Http404
    query = canonical(QueryDict(request.POST.get("query", "")))
    back = f"{reverse('admin:jobs_job_changelist')}?{query}"
    chosen = _chosen(request, deed, by, query)
    if not chosen:
        messages.warning(request, f"None of the chosen jobs can be {deed.done}.")
        return redirect(back)
    if "confirmed" in request.POST:
        _perform(request, deed, chosen, by)
        return redirect(back)
    context = {
        **admin.site.each_context(request),
        "title": f"{deed.verb} jobs",
        "deed": deed,
        "jobs": chosen[:MOST_SHOWN],
        "ids": ",".join(str(job.id) for job in chosen),
        "count": len(chosen),
        "is_most": len(chosen) == MOST_JOBS,
        "more": max(0, len(chosen) - MOST_SHOWN),
        "query": query,
        "back": back,
    }
    return TemplateResponse(request, "jobs/list/confirm.html", context)


def _chosen(request: HttpRequest, deed: Deed, by: Caller, query: str) -> list[Job]:
    """The jobs that are meant and that this can be done to: those ticked, or all that the list's filters find."""
    if "every" in request.POST:
        parameters = QueryDict(query)
        jobs: list[Job] = []
        for status in deed.statuses:
            if parameters.get("status") in (None, "", status):
                narrowed = parameters.copy()
                narrowed["status"] = status
                jobs += found(narrowed, reach=MOST_JOBS)
        return sorted(jobs, key=lambda job: job.id, reverse=True)[:MOST_JOBS]
    ids = _ids([*request.POST.getlist("job"), *request.POST.get("jobs", "").split(",")])
    visible = Job.objects.visible_to(by).filter(id__in=ids[:MOST_JOBS], status__in=deed.statuses)
    return list(visible.select_related("project").order_by("-id"))


def _ids(given: list[str]) -> list[UUID]:
    ids = []
    for text in given:
        try:
            ids.append(UUID(text))
        except ValueError:
            continue  # an empty list, or not from this page
    return ids


def _perform(request: HttpRequest, deed: Deed, jobs: list[Job], by: Caller) -> None:
    """One transaction a job: what is wrong with one does not stop the others."""
    done, refused = 0, []
    for job in jobs:
        try:
            deed.perform(job.id, by=by)
        except EngineError as error:
            refused.append(error.detail)
        else:
            done += 1
    if done:
        messages.success(request, f"{done:,} job{'s' if done != 1 else ''} {deed.done}.")
    if refused:
        messages.error(request, f"{len(refused):,} could not be {deed.done}: {refused[0]}")
