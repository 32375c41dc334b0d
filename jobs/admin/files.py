"""What the dashboard hands out as files: artifacts, inputs, the log. All of it comes from agents and is hostile."""

import json
from collections.abc import Iterator
from typing import TypeVar
from uuid import UUID

from django.core.files.storage import storages
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET

from apikeys.scopes import Scope
from engine.dashboard.access import acting
from jobs import services
from jobs.admin.previews import contents, is_shown_as_image, reads_as
from jobs.errors import JobNotFound
from jobs.models import Artifact, Event, InputFile, Job

# Even opened by mistake, a file can run nothing and reach nothing.
SANDBOX_POLICY = "default-src 'none'; sandbox"
READ_AT_ONCE = 2_000

R = TypeVar("R", bound=HttpResponseBase)


@require_GET
def artifact(request: HttpRequest, job_id: UUID, artifact_id: UUID) -> FileResponse:
    """An artifact's bytes: for download, or as the picture that the page shows (`?shown`)."""
    by = acting(request, Scope.JOBS_READ)
    found = Artifact.objects.visible_to(by).filter(id=artifact_id, job_id=job_id).first()
    if found is None:
        raise Http404
    return _file(found, as_image="shown" in request.GET and is_shown_as_image(found))


@require_GET
def preview(request: HttpRequest, job_id: UUID, artifact_id: UUID) -> HttpResponse:
    """What can be read of an artifact, as a piece of the page (static/engine/preview.js)."""
    by = acting(request, Scope.JOBS_READ)
    found = Artifact.objects.visible_to(by).filter(id=artifact_id, job_id=job_id).first()
    if found is None or not reads_as(found):
        raise Http404
    try:
        context = {"artifact": found, "contents": contents(found)}
    except FileNotFoundError as error:
        raise Http404("The file is gone from storage") from error
    response = TemplateResponse(request, "jobs/job/preview.html", context)
    response["Cache-Control"] = "private, no-store"
    return response


@require_GET
def input_file(request: HttpRequest, job_id: UUID, file_id: UUID) -> FileResponse:
    """A file that was handed to the job, for download."""
    job = _visible(request, job_id)
    found = InputFile.objects.filter(id=file_id, job=job).first()
    if found is None:
        raise Http404
    return _file(found, as_image=False)


def _file(stored: Artifact | InputFile, *, as_image: bool) -> FileResponse:
    try:
        content = storages["artifacts"].open(stored.storage_key, "rb")
    except FileNotFoundError as error:
        raise Http404("The file is gone from storage") from error
    response = FileResponse(
        content,
        as_attachment=not as_image,
        filename=stored.name.replace("/", "_"),
        content_type=stored.media_type if as_image else "application/octet-stream",
    )
    return _guarded(response)


@require_GET
def log_text(request: HttpRequest, job_id: UUID) -> HttpResponseBase:
    """The whole log as plain text: time, level, source, message."""
    job = _visible(request, job_id)
    response = StreamingHttpResponse(_lines(job.id), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="job-{job.id}.log"'
    return _guarded(response)


@require_GET
def raw_events(request: HttpRequest, job_id: UUID) -> HttpResponseBase:
    """All events as they are stored, one JSON object a line."""
    job = _visible(request, job_id)
    response = StreamingHttpResponse(_json_lines(job.id), content_type="text/plain; charset=utf-8")
    return _guarded(response)


def _guarded(response: R) -> R:
    response["Content-Security-Policy"] = SANDBOX_POLICY
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, no-store"
    return response


def _visible(request: HttpRequest, job_id: UUID) -> Job:
    try:
        return services.get(job_id, by=acting(request, Scope.JOBS_READ))
    except JobNotFound as error:
        raise Http404 from error


def _events(job_id: UUID) -> Iterator[Event]:
    """All events in order, read in pages by cursor: a long log is never held whole."""
    last = 0
    while page := list(Event.objects.filter(job_id=job_id, seq__gt=last).order_by("seq")[:READ_AT_ONCE]):
        yield from page
        last = page[-1].seq


def _lines(job_id: UUID) -> Iterator[str]:
    for event in _events(job_id):
        source = event.type if event.type != "log" else event.source
        yield f"{event.at.isoformat()} {event.level:<7} {source} {event.message}\n"


def _json_lines(job_id: UUID) -> Iterator[str]:
    for event in _events(job_id):
        yield (
            json.dumps(
                {
                    "seq": event.seq,
                    "at": event.at.isoformat(),
                    "type": event.type,
                    "source": event.source,
                    "level": event.level,
                    "attempt": event.attempt,
                    "message": event.message,
                    "data": event.data,
                },
                ensure_ascii=False,
            )
            + "\n"
        )
