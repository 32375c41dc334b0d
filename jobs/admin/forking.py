"""A new job that goes on from a chosen checkpoint of an ended one, with other answers if wanted."""

import json
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.views.decorators.http import require_http_methods

from apikeys.callers import Caller
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.text import escaped, plain
from engine.errors import EngineError, NotFound
from jobs import continuing
from jobs.admin import recorded
from jobs.admin.answer_forms import JSONText
from jobs.models import Question


class ForkForm(forms.Form):
    """The checkpoint, and the answers given before it."""

    checkpoint = forms.ChoiceField(
        label="Go on after", help_text="What was done up to there is kept and does not run again."
    )

    def __init__(self, job_id: UUID, by: Caller, data: Any = None, **options: Any) -> None:
        super().__init__(data, **options)
        found = continuing.checkpoints(job_id, by=by)
        names = [(point.key, f"{number}. {plain(point.key)}") for number, point in enumerate(found, 1)]
        self.fields["checkpoint"].choices = names[::-1]  # type: ignore[attr-defined]  # a ChoiceField
        self.questions = list(
            Question.objects.filter(job_id=job_id, status=Question.Status.ANSWERED).order_by("id")
        )
        for index, question in enumerate(self.questions):
            area = forms.Textarea({"rows": 2, "class": "e-code", "spellcheck": "false"})
            self.fields[f"a{index}"] = JSONText(
                label=plain(question.prompt), widget=area, initial=escaped(_json(question.answer))
            )

    def given(self) -> dict[str, Any]:
        """The answers that were changed, by the keys of their questions."""
        return {
            question.key: self.cleaned_data[f"a{index}"]
            for index, question in enumerate(self.questions)
            if self.cleaned_data[f"a{index}"] != question.answer
        }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@require_http_methods(["GET", "HEAD", "POST"])
def fork(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """The form, and what it starts."""
    by = acting(request, Scope.JOBS_WRITE)
    try:
        form = ForkForm(job_id, by, request.POST if request.method == "POST" else None, initial=request.GET)
    except NotFound as error:
        raise Http404 from error
    if request.method == "POST" and form.is_valid():
        try:
            checkpoint = form.cleaned_data["checkpoint"]
            job = recorded.fork(job_id, checkpoint=checkpoint, given=form.given(), by=by)
        except EngineError as error:
            form.add_error(None, error.detail)
            for fault in error.errors:
                form.add_error(None, fault["detail"])
        else:
            messages.success(request, "This is a new job: it goes on from the checkpoint you chose.")
            return redirect("admin:jobs_job_change", job.id)
    context = {**admin.site.each_context(request), "title": "Fork a job", "form": form, "job_id": job_id}
    status = 422 if form.errors else 200
    return TemplateResponse(request, "jobs/job/fork.html", context, status=status)
