"""The inbox: every question that waits for a person, and who answered the earlier ones."""

from typing import Any

from django.contrib import admin
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.dashboard.live import parts, wants_parts
from jobs import figures
from jobs.admin.answer_forms import AnswerForm
from jobs.models import Question
from jobs.services import database_time

PARTS = {"inbox": "jobs/inbox/questions.html"}
MOST_OPEN, MOST_CLOSED = 50, 50


@admin.register(Question)
class QuestionAdmin(ListAdmin):
    """Questions are answered here in place, soonest due first."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The inbox, or with `?answered` the questions that are closed."""
        by = acting(request, Scope.JOBS_READ)
        questions = Question.objects.visible_to(by).select_related("job__agent_version__agent", "project")
        shows_closed = "answered" in request.GET
        context = {
            **self.admin_site.each_context(request),
            "title": "Inbox",
            "now": database_time(),
            "shows_closed": shows_closed,
            "open_count": figures.open_questions(),
            "may_answer": by.may(Scope.JOBS_RESPOND),
        }
        if shows_closed:
            # Ids are made in order of time: the newest questions, without reading the rest.
            context["closed"] = questions.exclude(status=Question.Status.OPEN).order_by("-id")[:MOST_CLOSED]
        else:
            due_first = questions.open().order_by(F("expires_at").asc(nulls_last=True), "id")
            context["forms"] = [AnswerForm(question) for question in due_first[:MOST_OPEN]]
        if wants_parts(request):
            return parts(request, PARTS, context)
        return TemplateResponse(request, "jobs/inbox/page.html", context)
