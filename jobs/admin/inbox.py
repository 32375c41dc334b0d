"""The inbox: every question that waits for a person, and who answered the earlier ones."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import F, Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.dashboard.live import parts, wants_parts
from jobs import figures
from jobs.admin.answer_forms import AnswerForm
from jobs.admin.narrowing import as_uuid
from jobs.models import Question, QuestionQuerySet
from jobs.services import database_time

PARTS = {"inbox": "jobs/inbox/questions.html"}
MOST_OPEN, MOST_CLOSED = 50, 50
# Closed questions are filtered among so many of the newest: no index serves that, and a search has to end.
SEARCHED = 20_000
MOST_ASSIGNEES_READ = 1_000
DUE = {
    "hour": ("Due within an hour", timedelta(hours=1)),
    "day": ("Due within a day", timedelta(days=1)),
    "week": ("Due within a week", timedelta(days=7)),
}
NOT_DUE, NOBODY = "none", "-"
FILTERS = ("due", "assignee", "kind")


@admin.register(Question)
class QuestionAdmin(ListAdmin):
    """Questions are answered here in place, soonest due first."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The inbox, or with `?answered` the questions that are closed; narrowed by due time, assignee, kind."""
        by = acting(request, Scope.JOBS_READ)
        questions = Question.objects.visible_to(by).select_related("job__agent_version__agent", "project")
        now = database_time()
        chosen = {name: request.GET.get(name, "") for name in FILTERS}
        context = {
            **self.admin_site.each_context(request),
            "title": "Inbox",
            "now": now,
            "shows_closed": "answered" in request.GET,
            "open_count": figures.open_questions(),
            "may_answer": by.may(Scope.JOBS_RESPOND),
            "chosen": chosen,
            "is_filtered": any(chosen.values()),
            "kinds": Question.Kind.choices,
            "dues": [(value, label) for value, (label, _) in DUE.items()] + [(NOT_DUE, "Never due")],
            "assignees": _assignees(questions.open()),
        }
        if context["shows_closed"]:
            context |= _closed(questions, chosen, before=request.GET.get("before", ""))
        else:
            found = questions.open().filter(_conditions(chosen, now))
            due_first = found.order_by(F("expires_at").asc(nulls_last=True), "id")
            context["forms"] = [AnswerForm(question) for question in due_first[:MOST_OPEN]]
        if wants_parts(request):
            return parts(request, PARTS, context)
        return TemplateResponse(request, "jobs/inbox/page.html", context)


def _conditions(chosen: dict[str, str], now: datetime) -> Q:
    conditions = Q()
    if chosen["kind"]:
        conditions &= Q(kind=chosen["kind"])
    if chosen["assignee"] == NOBODY:
        conditions &= Q(assignees=[])
    elif chosen["assignee"]:
        conditions &= Q(assignees__contains=[chosen["assignee"]])
    if chosen["due"] == NOT_DUE:
        conditions &= Q(expires_at=None)
    elif chosen["due"] in DUE:
        conditions &= Q(expires_at__lte=now + DUE[chosen["due"]][1])
    return conditions


def _assignees(waiting: QuestionQuerySet) -> list[str]:
    """Whom the open questions are for."""
    asked = waiting.order_by("-id").values_list("assignees", flat=True)[:MOST_ASSIGNEES_READ]
    return sorted({name for names in asked for name in names})


def _closed(questions: QuestionQuerySet, chosen: dict[str, str], *, before: str) -> dict[str, Any]:
    """A page of the history, newest first. Ids are made in order of time, so no page reads what lies before it."""
    found = questions.exclude(status=Question.Status.OPEN)
    if chosen["kind"] or chosen["assignee"]:
        floor = Question.objects.order_by("-id").values_list("id", flat=True)[SEARCHED : SEARCHED + 1].first()
        conditions = _conditions(chosen | {"due": ""}, datetime.max)
        found = found.filter(conditions, **({"id__gt": floor} if floor else {}))
    start = as_uuid(before)
    if start:
        found = found.filter(id__lt=start)
    page = list(found.order_by("-id")[: MOST_CLOSED + 1])
    older = page[MOST_CLOSED - 1].id if len(page) > MOST_CLOSED else None
    return {"closed": page[:MOST_CLOSED], "older": older, "is_first": start is None}
