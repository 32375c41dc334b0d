"""The first page: what runs, what waits for somebody, what went wrong in the last hour, day or week."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, JsonResponse

from agents import discovery
from apikeys.scopes import Scope
from engine import readiness
from engine.dashboard.access import acting
from engine.dashboard.live import parts
from jobs import figures
from jobs.figures import HOUR, WINDOWS, Slot, Window
from jobs.models import Job, Question

PARTS = {
    "overview-now": "jobs/overview/now.html",
    "overview-past": "jobs/overview/past.html",
    "overview-attention": "jobs/overview/attention.html",
}
# Below the chart, evenly spread, before "now".
TIMES = {
    "1h": ("60 min ago", "30 min ago"),
    "24h": ("24 h ago", "12 h ago"),
    "7d": ("7 days ago", "3½ days ago"),
}
CHART_WIDTH, CHART_HEIGHT = 600, 120


@dataclass(frozen=True)
class Bar:
    """One slot of the throughput chart, in the coordinates of its drawing."""

    slot: Slot
    x: float
    width: float
    completed_y: float
    completed_height: float
    failed_y: float
    failed_height: float


@dataclass(frozen=True)
class Chart:
    """What ended in a window, slot by slot."""

    bars: Sequence[Bar]
    top: int  # jobs in a slot at the upper edge
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
    return context | _context(_window(request)) if context["may_see_jobs"] else context


def overview_parts(request: HttpRequest) -> JsonResponse:
    """The page's parts as they are now."""
    acting(request, Scope.JOBS_READ)
    return parts(request, PARTS, _context(_window(request)))


def _window(request: HttpRequest) -> Window:
    return WINDOWS.get(request.GET.get("window", ""), HOUR)


def _context(window: Window) -> dict[str, Any]:
    now = figures.figures(window)
    questions = Question.objects.open().select_related("job__agent_version__agent").order_by("id")
    return {
        "now": now.now,
        "figures": now,
        "degraded": discovery.degraded(),
        "troubled": [reading for reading in readiness.outside() if reading.needs_somebody],
        "chart": chart(now.past.slots),
        "windows": WINDOWS.values(),
        "labels": TIMES[window.name],
        "questions": questions[:6],
        "is_new": not (any(now.states.values()) or now.past.completed or Job.objects.exists()),
    }


def chart(slots: Sequence[Slot]) -> Chart:
    """Stacked bars, failures on top."""
    top = _round_up(max((slot.total for slot in slots), default=0))
    room = CHART_WIDTH / max(1, len(slots))
    gap = room / 5
    bars = []
    for index, slot in enumerate(slots):
        completed = slot.completed / top * CHART_HEIGHT
        failed = slot.failed / top * CHART_HEIGHT
        bars.append(
            Bar(
                slot,
                x=round(index * room + gap / 2, 2),
                width=round(room - gap, 2),
                completed_y=round(CHART_HEIGHT - completed, 2),
                completed_height=round(completed, 2),
                failed_y=round(CHART_HEIGHT - completed - failed, 2),
                failed_height=round(failed, 2),
            )
        )
    return Chart(bars, top, _success(slots, room))


def _success(slots: Sequence[Slot], room: float) -> str:
    points = [
        f"{(index + 0.5) * room:.1f},{(1 - slot.completed / slot.total) * CHART_HEIGHT:.1f}"
        for index, slot in enumerate(slots)
        if slot.total
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
