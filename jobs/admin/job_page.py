"""One job: where it stands, what it asks, what it says, what it handed back."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET, require_POST

from apikeys.callers import Caller
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.live import parts
from engine.errors import EngineError, NotFound
from jobs import services
from jobs.admin import recorded
from jobs.admin.answer_forms import AnswerForm
from jobs.admin.budgets import spent
from jobs.admin.commands import as_curl
from jobs.admin.previews import previews
from jobs.admin.timeline import timeline
from jobs.errors import InvalidAnswer
from jobs.models import Job, Question, Worker
from jobs.serializers import attempts_of, usage_of
from jobs.transcripts import transcript

PARTS = {
    "job-head": "jobs/job/head.html",
    "job-questions": "jobs/job/questions.html",
    "job-outcome": "jobs/job/outcome.html",
    "job-artifacts": "jobs/job/artifacts.html",
    "job-conversation": "jobs/job/conversation.html",
    "job-facts": "jobs/job/facts.html",
    "job-history": "jobs/job/history.html",
}
RETRYABLE = (Job.Status.FAILED, Job.Status.CANCELLED)
# What one page shows of each; the raw events have the rest.
MOST_ATTEMPTS, MOST_STEPS, MOST_QUESTIONS, MOST_ARTIFACTS = 50, 200, 50, 200
MOST_REPLIES = 100


@require_GET
def job_page(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """The page of one job."""
    job = _job(job_id, by=acting(request, Scope.JOBS_READ))
    return _page(request, job)


@require_GET
def job_parts(request: HttpRequest, job_id: UUID) -> JsonResponse:
    """The parts of the page that change while the job runs."""
    job = _job(job_id, by=acting(request, Scope.JOBS_READ))
    return parts(request, PARTS, _context(request, job), final=job.is_final)


@require_POST
def cancel(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """End the job; a running one is told to stop."""
    by = acting(request, Scope.JOBS_WRITE)
    try:
        job = recorded.cancel(job_id, by=by)
    except NotFound as error:
        raise Http404 from error
    except EngineError as error:
        messages.error(request, error.detail)
    else:
        messages.success(
            request,
            "The job is cancelled."
            if job.is_final
            else "The job is being stopped. That takes a few seconds.",
        )
    return redirect("admin:jobs_job_change", job_id)


@require_POST
def retry(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """A new job that goes on where this one stopped."""
    by = acting(request, Scope.JOBS_WRITE)
    try:
        job = recorded.retry(job_id, by=by)
    except NotFound as error:
        raise Http404 from error
    except EngineError as error:
        messages.error(request, error.detail)
        return redirect("admin:jobs_job_change", job_id)
    messages.success(request, "This is a new job: it goes on where the other one stopped.")
    return redirect("admin:jobs_job_change", job.id)


@require_POST
def answer(request: HttpRequest, job_id: UUID, question_id: UUID) -> HttpResponse:
    """Answer one question. An answer that does not fit comes back with what is wrong at each field."""
    by = acting(request, Scope.JOBS_RESPOND)
    job = _job(job_id, by=by)
    question = job.questions.filter(id=question_id).first()
    if question is None:
        raise Http404
    form = AnswerForm(question, request.POST)
    is_complete = form.is_complete(request)
    if question.status == Question.Status.OPEN and not is_complete:
        return _page(request, job, form=form, status=422)
    given = form.answer(request) if is_complete else None  # too late: `respond` says who was first
    try:
        job = recorded.respond(job_id, by=by, answer=given, question_id=question_id)
    except InvalidAnswer as error:
        form.take_faults(error.detail, error.errors)
        return _page(request, job, form=form, status=422)
    except EngineError as error:
        messages.error(request, f"{error.title}. {error.detail}")
    else:
        is_waiting = job.status == Job.Status.WAITING_FOR_INPUT
        messages.success(request, f"Answered. {'More is asked.' if is_waiting else 'The job goes on.'}")
    if request.POST.get("from") == "inbox":
        return redirect("admin:jobs_question_changelist")
    return redirect("admin:jobs_job_change", job_id)


def _job(job_id: UUID, *, by: Caller) -> Job:
    job = (
        Job.objects.visible_to(by)
        .select_related("agent_version__agent", "project", "parent", "retried_from")
        .filter(id=job_id)
        .first()
    )
    if job is None:
        raise Http404
    return job


def _page(
    request: HttpRequest, job: Job, *, form: AnswerForm | None = None, status: int = 200
) -> HttpResponse:
    context = {
        **admin.site.each_context(request),
        **_context(request, job, form=form),
        "title": "Job",
    }
    return TemplateResponse(request, "jobs/job/page.html", context, status=status)


def _context(request: HttpRequest, job: Job, *, form: AnswerForm | None = None) -> dict[str, Any]:
    by = acting(request, Scope.JOBS_READ)
    questions = list(job.questions.order_by("-id")[:MOST_QUESTIONS])
    attempts = attempts_of(job)[-MOST_ATTEMPTS:][::-1]
    steps = list(job.steps.order_by("ordinal", "key")[:MOST_STEPS])
    input_files = list(job.input_files.order_by("name"))
    now = services.database_time()
    conversation, goes_on = transcript(job, limit=MOST_REPLIES)
    return {
        "now": now,
        "job": job,
        "decision": (job.discovery or {}).get("decision", ""),
        "ranked": _ranked(job.discovery or {}),
        "open_forms": [
            form if form and form.question.id == question.id else AnswerForm(question)
            for question in reversed(questions)
            if question.status == Question.Status.OPEN
        ],
        "closed_questions": [question for question in questions if question.status != Question.Status.OPEN],
        "attempts": attempts,
        "timeline": timeline(job, attempts, steps, questions, now),
        "curl": as_curl(job, input_files, url=request.build_absolute_uri("/").rstrip("/")),
        "conversation": conversation,
        "conversation_goes_on": goes_on,
        "usage": usage_of(job, attempts[::-1]),
        "worker": Worker.objects.filter(id=job.worker_id).first() if job.worker_id else None,
        "steps": steps,
        "may_fork": by.may(Scope.JOBS_WRITE) and job.is_final and job.agent_version_id is not None,
        "budget": spent(job),
        "artifacts": previews(job.artifacts.order_by("name")[:MOST_ARTIFACTS]),
        "input_files": input_files,
        "children": list(Job.objects.filter(parent=job).order_by("id")[:50]),
        "may_answer": by.may(Scope.JOBS_RESPOND),
        "may_submit": by.may(Scope.JOBS_WRITE),
        "may_cancel": by.may(Scope.JOBS_WRITE) and not job.is_final and job.cancel_requested_at is None,
        "may_retry": by.may(Scope.JOBS_WRITE) and job.status in RETRYABLE and job.agent_version_id,
    }


def _ranked(discovery: dict[str, Any]) -> list[dict[str, Any]]:
    """The agents that were found, best first; where none fitted, those that came nearest."""
    found = discovery.get("results") or discovery.get("nearest") or []
    return [{"confidence": 0.0, **result} for result in found]
