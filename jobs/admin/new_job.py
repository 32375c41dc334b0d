"""Submitting a job from the dashboard: the task in plain words, files, and an agent or the choice of one."""

from dataclasses import replace
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.views.decorators.http import require_http_methods, require_POST

from agents.models import Agent
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.text import plain
from engine.errors import EngineError
from jobs import services, uploads
from jobs.admin import recorded
from jobs.admin.answer_forms import JSONText
from jobs.models import Job
from jobs.serializers import MOST_TASK_CHARS
from jobs.services import JobRequest

MOST_FORESEEN = 3


class Files(forms.FileField):
    """Any number of files, none included."""

    widget = forms.FileInput

    def clean(self, data: Any, initial: Any = None) -> list[UploadedFile]:
        """Each file by FileField's own rules."""
        return [super(Files, self).clean(file, initial) for file in data or []]


class SeveralFiles(forms.FileInput):
    """The browser's own chooser, for several files."""

    allow_multiple_selected = True

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Any:
        """All that were chosen, not the last one alone."""
        return files.getlist(name)


class NewJobForm(forms.Form):
    """A task is enough; the rest has defaults."""

    task = forms.CharField(
        max_length=MOST_TASK_CHARS,
        widget=forms.Textarea({"rows": 4, "placeholder": "Analyze the sentiment of these customer reviews"}),
        help_text="In plain words: what should be done, and what you want back.",
    )
    input_files = Files(label="Files", required=False, widget=SeveralFiles({"multiple": True}))
    agent = forms.ChoiceField(
        required=False, help_text="Leave it to Engine, and the job says why it picked the one it did."
    )
    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"), to_field_name="slug", empty_label=None
    )
    priority = forms.ChoiceField(
        choices=[(item, str(item)) for item in Job.Priority], initial=Job.Priority.NORMAL
    )
    timeout_seconds = forms.IntegerField(
        label="Time limit of one attempt, in seconds", required=False, min_value=1, max_value=7 * 24 * 3600
    )
    input = JSONText(
        label="Input as JSON",
        required=False,
        widget=forms.Textarea({"rows": 4, "class": "e-code", "spellcheck": "false"}),
        help_text="For agents that take settings; the agent's page shows which.",
    )

    def __init__(self, by: Caller, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        agents = Agent.objects.visible_to(by).active().select_related("current_version").order_by("slug")
        self.fields["agent"].choices = [  # type: ignore[attr-defined]  # a ChoiceField
            ("", "Let Engine find the best one"),
            *{agent.slug: (agent.slug, _label(agent)) for agent in agents[:500]}.values(),
        ]
        limit = filesizeformat(settings.ENGINE_MAX_UPLOAD_BYTES)
        self.fields[
            "input_files"
        ].help_text = f"Up to {limit} together. The agent reads them; nothing else does."

    def clean_input(self) -> dict[str, Any]:
        """An object: agents get named values."""
        value = self.cleaned_data["input"]
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise forms.ValidationError('Give an object: {"name": value}.')
        return value

    @property
    def advanced(self) -> list[forms.BoundField]:
        """What most jobs do not need."""
        return [self[name] for name in ("priority", "timeout_seconds", "input")]

    @property
    def has_advanced_faults(self) -> bool:
        """Whether the closed part of the form holds something to correct."""
        return any(field.errors for field in self.advanced)


def _label(agent: Agent) -> str:
    name = agent.current_version.name if agent.current_version else agent.slug
    return f"{plain(name)} ({agent.slug})"


@require_http_methods(["GET", "HEAD", "POST"])
def new_job(request: HttpRequest) -> HttpResponse:
    """The form, and what it submits."""
    by = acting(request, Scope.JOBS_WRITE)
    if request.method != "POST":
        given = {name: request.GET[name] for name in ("task", "agent", "project") if name in request.GET}
        return _page(request, NewJobForm(by, initial=given))
    form = NewJobForm(by, request.POST, request.FILES)
    if form.is_valid():
        try:
            job = _submit(form.cleaned_data, by)
        except EngineError as error:
            form.add_error(None, error.detail)
            for fault in error.errors:
                form.add_error("input" if fault["pointer"].startswith("/input") else None, _said(fault))
        else:
            if job.is_final:
                messages.warning(request, "No agent fits this task.")
            else:
                messages.success(request, "Submitted.")
            return redirect("admin:jobs_job_change", job.id)
    return _page(request, form, status=422)


@require_POST
def foresee(request: HttpRequest) -> HttpResponse:
    """Who would do this task if it were submitted now, as a part of the form's page. Submits nothing."""
    by = acting(request, Scope.JOBS_WRITE)
    project = Project.objects.filter(archived_at=None, slug=request.POST.get("project", "")).first()
    task = request.POST.get("task", "").strip()
    if project is None or not task:
        return HttpResponse()
    birth = services.birth_of(
        JobRequest(task=task[:MOST_TASK_CHARS]), by=replace(by, project=project), project=project
    )
    explanation = birth.explanation or {}
    context = {
        "birth": birth,
        "results": (explanation.get("results") or explanation.get("nearest") or [])[:MOST_FORESEEN],
    }
    return render(request, "jobs/foreseen.html", context)


def _said(fault: Any) -> str:
    where = str(fault["pointer"]).removeprefix("/input").strip("/")
    return f"{where}: {fault['detail']}" if where else str(fault["detail"])


def _submit(values: dict[str, Any], by: Caller) -> Job:
    project: Project = values["project"]
    request = JobRequest(
        task=values["task"],
        agent=values["agent"] or None,
        input=values["input"],
        priority=values["priority"],
        timeout_seconds=values["timeout_seconds"],
    )
    with uploads.stored(values["input_files"], project_id=project.id, job_id=request.id) as (stored, keep):
        # In the project's place: its own agents and the shared ones, by its own threshold.
        job = recorded.submit(
            replace(request, files=stored), by=replace(by, project=project), project=project
        )
        keep()
    return job


def _page(request: HttpRequest, form: NewJobForm, *, status: int = 200) -> HttpResponse:
    context = {
        **admin.site.each_context(request),
        "title": "New job",
        "form": form,
        "has_projects": form.fields["project"].queryset.exists(),  # type: ignore[attr-defined]  # a ModelChoiceField
    }
    return TemplateResponse(request, "jobs/new.html", context, status=status)
