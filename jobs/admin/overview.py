"""The first page: what runs, what waits for somebody, what went wrong in the last hour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, JsonResponse

from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.live import parts
from jobs import figures
from jobs.figures import Minute
from jobs.models import Job, Question

PARTS = {
    "overview-now": "jobs/overview/now.html",
    "overview-hour": "jobs/overview/hour.html",
    "overview-attention": "jobs/overview/attention.html",
}
CHART_WIDTH, CHART_HEIGHT = 600, 120


@dataclass(frozen=True)
class Bar:
    """One minute of the throughput chart, in the coordinates of its drawing."""

    minute: Minute
    x: float
    width: float
    completed_y: float
    completed_height: float
    failed_y: float
    failed_height: float


@dataclass(frozen=True)
class Chart:
    """What ended in the last hour, minute by minute."""

    bars: Sequence[Bar]
    top: int  # jobs a minute at the upper edge
    success: str  # the share that completed, as points of a line; empty without two
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT

    @property
    def middle(self) -> str:
        """The label half way up."""
        return f"{self.top / 2:g}"


def overview(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What unfold's index page shows (UNFOLD["DASHBOARD_CALLBACK"])."""
    context |= {"title": "Overview", "may_see_jobs": request.user.has_perm("jobs.view_job")}
    return context | _context() if context["may_see_jobs"] else context


def overview_parts(request: HttpRequest) -> JsonResponse:
    """The page's parts as they are now."""
    acting(request, Scope.JOBS_READ)
    return parts(request, PARTS, _context())


def _context() -> dict[str, Any]:
    now = figures.figures()
    questions = Question.objects.open().select_related("job__agent_version__agent").order_by("id")
    return {
        "now": now.now,
        "figures": now,
        "chart": chart(now.hour.minutes),
        "questions": questions[:6],
        "is_new": not (any(now.states.values()) or now.hour.completed or Job.objects.exists()),
    }


def chart(minutes: Sequence[Minute]) -> Chart:
    """Stacked bars, failures on top."""
    top = _round_up(max((minute.total for minute in minutes), default=0))
    slot = CHART_WIDTH / max(1, len(minutes))
    bars = []
    for index, minute in enumerate(minutes):
        completed = minute.completed / top * CHART_HEIGHT
        failed = minute.failed / top * CHART_HEIGHT
        bars.append(
            Bar(
                minute,
                x=round(index * slot + 1, 2),
                width=round(slot - 2, 2),
                completed_y=round(CHART_HEIGHT - completed, 2),
                completed_height=round(completed, 2),
                failed_y=round(CHART_HEIGHT - completed - failed, 2),
                failed_height=round(failed, 2),
            )
        )
    return Chart(bars, top, _success(minutes, slot))


def _success(minutes: Sequence[Minute], slot: float) -> str:
    points = [
        f"{(index + 0.5) * slot:.1f},{(1 - minute.completed / minute.total) * CHART_HEIGHT:.1f}"
        for index, minute in enumerate(minutes)
        if minute.total
    ]
    return " ".join(points) if len(points) > 1 else ""


def _round_up(value: int) -> int:
    """The next number that people like to read on an axis: 2, 4, 6, 8, 10, 20, 30, 40, 60, …"""
    size = 1
    while True:
        for step in (2, 4, 6, 8, 10):
            if value <= step * size:
                return step * size
        size *= 10
