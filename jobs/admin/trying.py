"""Trying an agent while it is written: a job for the draft, whose end and log come back as parts of the editor."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from django import forms
from django.http import Http404, HttpRequest, JsonResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from agents import services as agents
from agents.admin.acting_for import agent_of, in_place
from agents.admin.editor import Draft, JSONObject
from agents.models import AgentVersion
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.errors import EngineError, NotFound
from jobs import uploads
from jobs.admin import recorded
from jobs.admin.new_job import Files, SeveralFiles
from jobs.models import Event, Job
from jobs.serializers import MOST_TASK_CHARS
from jobs.services import JobRequest

# What stands beside the code; the job's own page has all.
MOST_LINES = 300
# A trial is looked at now: it goes before what can wait, and is given up soon.
TRIAL_SECONDS = 600


class TrialForm(forms.Form):
    """What the draft is tried with."""

    try_task = forms.CharField(label="Task", max_length=MOST_TASK_CHARS)
    try_input = JSONObject({}, label="Input")
    try_files = Files(label="Files", required=False, widget=SeveralFiles({"multiple": True}))
    try_project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None), to_field_name="slug", required=False, label="Project"
    )

    def clean_try_input(self) -> dict[str, Any]:
        """An object: agents get named values."""
        value = self.cleaned_data["try_input"]
        if not isinstance(value, dict):
            raise forms.ValidationError('Give an object: {"name": value}.')
        return value


@require_POST
def try_agent(request: HttpRequest, agent_id: UUID) -> JsonResponse:
    """Store the draft as a version that is not current, and run it. Answers where to look, or what is wrong."""
    by = acting(request, Scope.AGENTS_WRITE)
    agent = agent_of(by, agent_id)
    draft, form = Draft(agent, request.POST), TrialForm(request.POST, request.FILES)
    if faults := draft.faults():
        return JsonResponse({"faults": faults}, status=422)
    if not form.is_valid():
        return _refused(*(f"{form[name].label}: {said[0]}" for name, said in form.errors.items()))
    project = agent.project or form.cleaned_data["try_project"]
    if project is None:
        return _refused("Choose a project: each job belongs to one.")
    try:
        version = agents.draft(in_place(by, agent), agent.slug, draft.card())
        job = _submit(form.cleaned_data, version, by=in_place(by, agent), project=project)
    except EngineError as error:
        return _refused(*(one["detail"] for one in error.errors) if error.errors else (error.detail,))
    return JsonResponse({"follow": reverse("admin:jobs_trial", args=[job.id])}, status=201)


@require_GET
def trial(request: HttpRequest, job_id: UUID) -> JsonResponse:
    """How a trial stands: its state, the end of its log, its result."""
    by = acting(request, Scope.JOBS_READ)
    job = Job.objects.visible_to(by).select_related("agent_version__agent").filter(id=job_id).first()
    if job is None:
        raise Http404
    lines = list(Event.objects.filter(job_id=job.id).order_by("-seq")[: MOST_LINES + 1])
    context = {
        "job": job,
        "lines": reversed(lines[:MOST_LINES]),
        "is_cut": len(lines) > MOST_LINES,
        "artifacts": job.artifacts.order_by("name")[:20],
        "may_stop": _is_own(job, by) and not job.is_final and job.cancel_requested_at is None,
    }
    html = render_to_string("jobs/trial.html", context, request)
    return JsonResponse({"final": job.is_final, "html": html})


@require_POST
def stop_trial(request: HttpRequest, job_id: UUID) -> JsonResponse:
    """Cancel a job that one has started oneself here; others take an operator."""
    by = acting(request, Scope.AGENTS_WRITE)
    job = Job.objects.visible_to(by).filter(id=job_id).first()
    if job is None or not _is_own(job, by):
        raise Http404
    try:
        recorded.cancel(job_id, by=by)
    except NotFound as error:
        raise Http404 from error
    except EngineError as error:
        return _refused(error.detail)
    return JsonResponse({})


def _submit(values: dict[str, Any], version: AgentVersion, *, by: Caller, project: Project) -> Job:
    order = JobRequest(
        task=values["try_task"],
        agent=version.ref,
        input=values["try_input"],
        priority=Job.Priority.HIGH,
        timeout_seconds=TRIAL_SECONDS,
        max_attempts=1,  # whoever writes code wants to see its first error
        metadata={"trial": True},
    )
    with uploads.stored(values["try_files"], project_id=project.id, job_id=order.id) as (stored, keep):
        job = recorded.submit(replace(order, files=stored), by=by, project=project)
        keep()
    return job


def _is_own(job: Job, by: Caller) -> bool:
    return job.created_by == by.label and job.metadata.get("trial") is True


def _refused(*details: str) -> JsonResponse:
    return JsonResponse({"faults": [{"detail": detail} for detail in details]}, status=422)
