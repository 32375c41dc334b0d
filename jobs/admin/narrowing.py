"""The filters of the list of jobs: from the parameters of its address to the jobs, by indexes alone."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import Q, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest

from engine.dashboard.lists import ParameterFilter
from jobs import listing, usage
from jobs.listing import Wanted
from jobs.models import Job

# Words are looked for in this many of the newest jobs: no index serves them, and a search has to end.
SEARCHED = 20_000
PERIODS = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
PARAMETERS = ("status", "project", "agent", "error", "ended", "used", "q")


def canonical(parameters: Mapping[str, Any]) -> str:
    """The filters alone, in their order: two lists that show the same have the same."""
    return urlencode({name: parameters[name] for name in PARAMETERS if parameters.get(name)})


def wanted(parameters: Mapping[str, Any]) -> Wanted:
    """What these parameters ask for. A state or period that does not exist is none."""
    status = parameters.get("status", "")
    return Wanted(
        status=status if status in Job.Status.values else "",
        project=parameters.get("project", ""),
        agent=parameters.get("agent", ""),
        error_code=parameters.get("error", ""),
        ended_within=PERIODS.get(parameters.get("ended", "")),
        has_used_today=parameters.get("used") == "today",
    )


def narrowed(parameters: Mapping[str, Any], *, reach: int) -> QuerySet[Job]:
    """The first `reach` jobs that these parameters ask for, all of them where the order of ids serves."""
    jobs = Job.objects.all()
    words = parameters.get("q", "").strip()
    job_id = as_uuid(words)
    if job_id:
        return jobs.filter(id=job_id)
    asked = wanted(parameters)
    if words:
        floor = jobs.order_by("-id").values_list("id", flat=True)[SEARCHED : SEARCHED + 1].first()
        recent = jobs.filter(id__gt=floor) if floor else jobs
        return recent.filter(Q(task__icontains=words) | Q(tags__contains=[words]), _conditions(asked))
    if asked.is_plain:
        return jobs.filter(_conditions(asked))
    return jobs.filter(id__in=listing.newest(asked, reach=reach))


def found(parameters: Mapping[str, Any], *, reach: int) -> list[Job]:
    """The same, read."""
    return list(narrowed(parameters, reach=reach).select_related("project").order_by("-id")[:reach])


def order(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Newest first; of those that ended within a time, the last ended first."""
    return ("-finished_at", "-id") if wanted(parameters).is_by_end else ("-id",)


def _conditions(asked: Wanted) -> Q:
    """The filters as conditions on rows that are read anyway."""
    conditions = Q()
    if asked.status:
        conditions &= Q(status=asked.status)
    if asked.project:
        conditions &= Q(project__slug=asked.project)
    if asked.agent:
        conditions &= Q(agent_version__agent__slug=asked.agent)
    if asked.error_code:
        conditions &= Q(status=Job.Status.FAILED, error__code=asked.error_code)
    if asked.ended_within:
        conditions &= Q(finished_at__gt=listing.ago(asked.ended_within))
    if asked.has_used_today:
        conditions &= Q(id__in=RawSQL(usage.JOBS_OF_TODAY, []))  # noqa: S611 (a constant)
    return conditions


def as_uuid(term: str) -> UUID | None:
    """The id that these characters are, with or without dashes."""
    digits = term.replace("-", "").lower()
    is_id = len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits)
    return UUID(digits) if is_id else None


class Narrowing(ParameterFilter):
    """A parameter that `narrowed` has taken into account already: Django has to know it, and no more."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """As it came."""
        return queryset


def parameter(name: str) -> type[Narrowing]:
    """The filter of one parameter."""
    return type(f"By{name.title()}", (Narrowing,), {"title": name, "parameter_name": name})
