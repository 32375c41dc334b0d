"""Jobs, their logs and files over HTTP. Each view reads the request, calls one service, shapes the reply."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.core.files.uploadedfile import UploadedFile
from django.db.models import QuerySet
from django.http import HttpResponseBase, QueryDict, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import Caller, caller
from apikeys.errors import ScopeMissing
from apikeys.idempotency import IDEMPOTENCY_KEY, idempotent
from apikeys.models import Project
from apikeys.scopes import Scope, run_scope
from engine.conditional import IF_NONE_MATCH, json_answer
from engine.errors import FieldError, ValidationFailed
from engine.gate import StrictJSONParser, StrictMultiPartParser, parse_json
from engine.openapi import PAGE_QUERY, page_of, several, whole
from engine.pages import PAGE_PARAMS, paginate
from engine.problems import Forbidden, pointer_part
from engine.query import Several, instant, one_of, query_params, text, whole_number
from jobs import downloads, services, uploads, watching
from jobs.errors import ArtifactNotFound
from jobs.models import Artifact, Event, Job
from jobs.requests import read_job
from jobs.serializers import (
    AGENT_REFERENCE,
    ArtifactSerializer,
    EventSerializer,
    JobFormSerializer,
    JobRequestSerializer,
    JobSerializer,
    JobSummarySerializer,
    TicketRequestSerializer,
    event_json,
    event_line,
    job_url,
)

LISTED_WITHOUT = (
    "input",
    "result",
    "discovery",
    "budget",
    "agent_version__source",
    "agent_version__instructions",
)
# A job's id holds the time of the web process that made it; its clock may be off the database's by this much.
CLOCK_SLACK = timedelta(minutes=10)

EVENT_TYPE = r"[a-z_]+(\.[a-z_]+)?"
TEXT = {"type": "string", "maxLength": 200}
LEVELS = ("debug", "info", "warning", "error")
SOURCES = ("system", "agent", "stdout", "stderr")
DEFAULT_EVENTS, MOST_EVENTS = 200, 1_000


def query(name: str, description: str = "", type: Any = str, **more: Any) -> OpenApiParameter:
    """A query parameter, for the API's description."""
    return OpenApiParameter(name, type, description=description, **more)


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """A query parameter of a certain form."""

    def convert(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"Not {what}")
        return value

    return convert


def moment(value: str) -> datetime:
    """A query parameter that is a point in time within PostgreSQL's years, in UTC."""
    try:
        return instant(value).astimezone(UTC)
    except OverflowError:
        raise ValueError("Out of range") from None


WAIT = OpenApiParameter(
    "Prefer",
    str,
    OpenApiParameter.HEADER,
    description="`wait=N`: answer when the job has ended or asks a person, at the latest after N (≤ 60) seconds.",
)


class JobsView(APIView):
    """/api/v1/jobs."""

    required_scope = {"GET": Scope.JOBS_READ, "POST": Scope.JOBS_WRITE}
    parser_classes = [StrictJSONParser, StrictMultiPartParser]

    @property
    def takes_run_scope(self) -> bool:
        """Keys that may run single agents only submit jobs to these; they do not list jobs."""
        return self.request.method == "POST"

    @extend_schema(
        operation_id="jobs_list",
        parameters=[
            *PAGE_QUERY,
            several("status", {"enum": Job.Status.values}, "One or several."),
            query(
                "agent",
                "An agent's slug, or slug@version.",
                {"type": "string", "pattern": f"^{AGENT_REFERENCE}$"},
            ),
            several("tag", TEXT, "Jobs that have all of these tags."),
            query("created_after", type=datetime),
            query("created_before", type=datetime),
            query("q", "Text that the task contains, in any case.", TEXT),
        ],
        responses=page_of(JobSummarySerializer),
    )
    def get(self, request: Request) -> Response:
        """List jobs, newest first."""
        params = query_params(
            request,
            {
                **PAGE_PARAMS,
                "status": Several(one_of(*Job.Status.values)),
                "agent": matching(AGENT_REFERENCE, "an agent's slug, or slug@version"),
                "tag": Several(text()),
                "created_after": moment,
                "created_before": moment,
                "q": text(),
            },
        )
        jobs = Job.objects.visible_to(caller(request)).select_related("agent_version__agent")
        page = paginate(filtered(jobs, params).defer(*LISTED_WITHOUT), params)
        return Response(page.as_json(lambda items: JobSummarySerializer(items, many=True).data))

    @extend_schema(
        operation_id="jobs_submit",
        parameters=[WAIT, IDEMPOTENCY_KEY],
        request={"application/json": JobRequestSerializer, "multipart/form-data": JobFormSerializer},
        responses={201: JobSerializer},
    )
    def post(self, request: Request) -> HttpResponseBase:
        """Submit a job. `task` alone is enough; files come as multipart `files`, other members as JSON in fields.

        A task that no agent fits gives a job with status `rejected` and the nearest agents, not an error.
        """
        by = caller(request)
        if by.project is None:
            raise Forbidden("Jobs belong to a project: submit them with a key")
        data, files = job_form(request)
        order = read_job(data)
        check_may_run(by, order.agent)
        # Before the idempotency key's transaction, which must not idle while large files are copied.
        with uploads.stored(files, project_id=by.project.id, job_id=order.id) as (stored, keep):
            response = self._submit(request, order, stored, by.project)
            if response.status_code == HTTPStatus.CREATED and "Idempotency-Replayed" not in response:
                keep()
        return response

    @idempotent
    def _submit(
        self,
        request: Request,
        order: services.JobRequest,
        files: list[services.StoredUpload],
        project: Project,
    ) -> Response:
        job = services.submit(replace(order, files=files), by=caller(request), project=project)
        document = JobSerializer(job, context={"is_new": True, "has_files": bool(files)}).data
        return Response(document, status=HTTPStatus.CREATED, headers={"Location": job_url(job.id)})


def job_form(request: Request) -> tuple[dict[str, Any], list[UploadedFile]]:
    """The members of a submitted job, and its files. Fields of a form hold text or JSON."""
    data = request.data
    if not isinstance(data, QueryDict):
        if not isinstance(data, dict):
            raise ValidationFailed(errors=[{"pointer": "", "detail": "Send a JSON object."}])
        return data, []
    files: list[UploadedFile] = request.FILES.getlist("files")
    errors: list[FieldError] = [
        {"pointer": f"/{pointer_part(name)}", "detail": "Send files as `files`."}
        for name in request.FILES
        if name != "files"
    ]
    if len(data.getlist("files")) > len(files):
        errors.append({"pointer": "/files", "detail": "A part of this name is no file: it has no file name."})
    if errors:
        raise ValidationFailed(errors=errors)
    fields = {name: form_value(name, data.getlist(name)) for name in data if name not in request.FILES}
    return fields, files


JSON_FIELDS = frozenset({"input", "tags", "metadata", "budget"})
NUMBER_FIELDS = frozenset({"timeout_s", "deadline_s", "max_attempts"})


def form_value(name: str, values: list[str]) -> Any:
    """One field of a form. Raises ValidationFailed for one that is given twice, MalformedJson and the like."""
    if len(values) > 1:
        raise ValidationFailed(
            errors=[{"pointer": f"/{pointer_part(name)}", "detail": "Given more than once."}]
        )
    if name in NUMBER_FIELDS and re.fullmatch(r"-?[0-9]{1,18}", values[0]):
        return int(values[0])
    return parse_json(values[0].encode()) if name in JSON_FIELDS else values[0]


def check_may_run(by: Caller, agent: str | None) -> None:
    """A key that may run single agents only must name one of them. Raises ScopeMissing."""
    slug = agent.partition("@")[0] if agent else None
    if by.may(Scope.JOBS_WRITE, agent_slug=slug):
        return
    if slug is None:
        raise ScopeMissing(
            "Name the `agent`: this key may run single agents only", missing_scope=Scope.JOBS_WRITE
        )
    raise ScopeMissing(f"This key may not run {slug}", missing_scope=run_scope(slug))


def filtered(jobs: QuerySet[Job], params: dict[str, Any]) -> QuerySet[Job]:
    """The jobs that a list asks for."""
    if "status" in params:
        jobs = jobs.filter(status__in=params["status"])
    if "agent" in params:
        slug, _, version = params["agent"].partition("@")
        jobs = jobs.filter(agent_version__agent__slug=slug)
        if version:
            jobs = jobs.filter(agent_version__number=int(version))
    if "tag" in params:
        jobs = jobs.filter(tags__contains=params["tag"])
    # Beside the time itself its bound on the id, by which the list is indexed.
    if "created_after" in params:
        at = params["created_after"]
        jobs = jobs.filter(created_at__gte=at, id__gte=first_id(at - CLOCK_SLACK))
    if "created_before" in params:
        at = params["created_before"]
        jobs = jobs.filter(created_at__lt=at, id__lt=first_id(at + CLOCK_SLACK))
    if "q" in params:
        jobs = jobs.filter(task__icontains=params["q"])
    return jobs


def first_id(at: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond (RFC 9562, 5.7)."""
    milliseconds = max(0, int(at.timestamp() * 1000))
    return UUID(int=milliseconds << 80)


class JobView(APIView):
    """/api/v1/jobs/ID."""

    required_scope = {"GET": Scope.JOBS_READ, "DELETE": Scope.JOBS_WRITE}

    @extend_schema(
        operation_id="jobs_get",
        parameters=[WAIT, IF_NONE_MATCH],
        responses={200: JobSerializer, 304: None},
    )
    def get(self, request: Request, job_id: UUID) -> HttpResponseBase:
        """A job with its questions, attempts, files and result."""
        query_params(request, {})
        return json_answer(request, JobSerializer(services.get(job_id, by=caller(request))).data)

    @extend_schema(operation_id="jobs_cancel", responses={200: JobSerializer, 202: JobSerializer})
    def delete(self, request: Request, job_id: UUID) -> Response:
        """Cancel a job: 200 when it is cancelled, 202 while it is being stopped, 409 if it ended otherwise."""
        by = caller(request)
        services.cancel(job_id, by=by)
        job = services.get(job_id, by=by)
        is_over = job.status == Job.Status.CANCELLED
        return Response(JobSerializer(job).data, status=HTTPStatus.OK if is_over else HTTPStatus.ACCEPTED)


# --- events ---


class NdjsonRenderer(BaseRenderer):
    """One JSON object a line."""

    media_type, format = "application/x-ndjson", "ndjson"


class LinesRenderer(BaseRenderer):
    """Lines for people."""

    media_type, format, charset = "text/plain", "txt", "utf-8"


class LogsView(APIView):
    """/api/v1/jobs/ID/logs. As `text/event-stream` it is answered in jobs/streams.py, which asks here first."""

    required_scope = Scope.JOBS_READ
    renderer_classes = [JSONRenderer, NdjsonRenderer, LinesRenderer]

    @extend_schema(
        operation_id="jobs_logs",
        parameters=[
            whole("after", 0, 2**63 - 1, "Events beyond this `seq`."),
            whole(
                "limit", 1, MOST_EVENTS, "Events a page. NDJSON and text have all events unless it is given."
            ),
            several("level", {"enum": list(LEVELS)}),
            several("source", {"enum": list(SOURCES)}),
            several("type", {"type": "string", "pattern": f"^{EVENT_TYPE}$"}, "Event types."),
            OpenApiParameter(
                "Last-Event-ID", str, OpenApiParameter.HEADER, description="As `after`, for SSE."
            ),
        ],
        responses={
            (200, "application/json"): inline_serializer(
                "EventPage",
                {
                    "items": EventSerializer(many=True),
                    "next_after": serializers.IntegerField(help_text="`after` of the next page."),
                    "final": serializers.BooleanField(help_text="Nothing will follow this page."),
                },
            ),
            (200, "application/x-ndjson"): OpenApiTypes.STR,
            (200, "text/plain"): OpenApiTypes.STR,
            (200, "text/event-stream"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request, job_id: UUID) -> HttpResponseBase:
        """A job's events: state changes and log lines, numbered without gaps.

        `Accept: text/event-stream` sends what is stored and then follows, until the job has ended.
        """
        params = query_params(
            request,
            {
                "after": whole_number(0, 2**63 - 1),
                "limit": whole_number(1, MOST_EVENTS),
                "level": Several(one_of(*LEVELS)),
                "source": Several(one_of(*SOURCES)),
                "type": Several(matching(EVENT_TYPE, "an event type")),
            },
        )
        # Read before the events: if it is final here, the events read next are all there are.
        job = services.get(job_id, by=caller(request))
        after = params.get("after", 0)
        match request.accepted_renderer.format:
            case "json":
                return Response(event_page(job, params, after))
            case "ndjson":
                render = JSONRenderer()
                lines = (render.render(event) + b"\n" for event in all_events(job, params, after))
                return StreamingHttpResponse(lines, content_type="application/x-ndjson")
            case _:
                texts = (event_line(event) + "\n" for event in all_events(job, params, after))
                return StreamingHttpResponse(texts, content_type="text/plain; charset=utf-8")


def events(job: Job, params: dict[str, Any], after: int, limit: int) -> list[dict[str, Any]]:
    """The next events that a request asks for."""
    chosen = {f"{name}__in": params[name] for name in ("level", "source", "type") if name in params}
    rows = Event.objects.filter(job_id=job.id, seq__gt=after, **chosen).order_by("seq")
    columns = ("seq", "attempt", "at", "type", "source", "level", "message", "data")
    return [event_json(*row) for row in rows.values_list(*columns)[:limit]]


def event_page(job: Job, params: dict[str, Any], after: int) -> dict[str, Any]:
    """One page, where the next begins, and whether anything can follow."""
    limit = params.get("limit", DEFAULT_EVENTS)
    items = events(job, params, after, limit)
    is_end = len(items) < limit
    next_after = items[-1]["seq"] if items else after
    if is_end and job.is_final:
        next_after = max(next_after, job.last_seq)
    return {"items": items, "next_after": next_after, "final": is_end and job.is_final}


def all_events(job: Job, params: dict[str, Any], after: int) -> Iterator[dict[str, Any]]:
    """Every event stored now, read in pages while the client takes them; or as many as `limit` says."""
    left = params.get("limit")
    while True:
        limit = MOST_EVENTS if left is None else left
        items = events(job, params, after, limit)
        yield from items
        if left is not None or len(items) < limit:
            return
        after = items[-1]["seq"]


# --- artifacts ---


class ArtifactsView(APIView):
    """/api/v1/jobs/ID/artifacts."""

    required_scope = Scope.JOBS_READ

    @extend_schema(
        operation_id="jobs_artifacts",
        parameters=PAGE_QUERY,
        responses=page_of(ArtifactSerializer),
    )
    def get(self, request: Request, job_id: UUID) -> Response:
        """List the files that a job has handed back, newest first."""
        params = query_params(request, PAGE_PARAMS)
        by = caller(request)
        job = services.get(job_id, by=by)
        page = paginate(Artifact.objects.visible_to(by).filter(job=job), params)
        return Response(page.as_json(lambda items: ArtifactSerializer(items, many=True).data))


class ArtifactView(APIView):
    """/api/v1/jobs/ID/artifacts/ID."""

    required_scope = Scope.JOBS_READ

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """The file is of the type it is, whatever the client would accept."""
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(
        operation_id="jobs_artifact",
        parameters=[
            query("inline", "Show images, text, CSV, Markdown and JSON instead of downloading them.", bool),
            OpenApiParameter("Range", str, OpenApiParameter.HEADER),
            IF_NONE_MATCH,
        ],
        responses={
            (200, "application/octet-stream"): OpenApiTypes.BINARY,
            (206, "application/octet-stream"): OpenApiTypes.BINARY,
            304: OpenApiResponse(description="The client has it."),
            416: OpenApiResponse(description="The range lies outside of the file."),
        },
    )
    def get(self, request: Request, job_id: UUID, artifact_id: UUID) -> HttpResponseBase:
        """Download a file, whole or in part."""
        params = query_params(request, {"inline": one_of("1", "true", "0", "false")})
        artifacts = Artifact.objects.visible_to(caller(request))
        artifact = artifacts.filter(job_id=job_id, id=artifact_id).first()
        if artifact is None:
            raise ArtifactNotFound(artifact_id=str(artifact_id))
        return downloads.download(request, artifact, inline=params.get("inline") in ("1", "true"))


class StreamTicketsView(APIView):
    """/api/v1/stream-tickets."""

    required_scope = Scope.JOBS_READ

    @extend_schema(
        operation_id="stream_tickets_create",
        request=TicketRequestSerializer,
        responses={
            201: inline_serializer(
                "StreamTicket",
                {
                    "ticket": serializers.CharField(),
                    "expires_in_s": serializers.IntegerField(),
                    "url": serializers.CharField(help_text="The WebSocket's address, the ticket included."),
                },
            )
        },
    )
    def post(self, request: Request) -> Response:
        """A ticket that opens one WebSocket on one job once: for browsers, which cannot send a key along."""
        body = TicketRequestSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        job_id = body.validated_data["job_id"]
        ticket = watching.issue_ticket(job_id, by=caller(request))
        document = {
            "ticket": ticket,
            "expires_in_s": watching.TICKET_SECONDS,
            "url": f"/ws/v1/jobs/{job_id}?ticket={ticket}",
        }
        return Response(document, status=HTTPStatus.CREATED, headers={"Cache-Control": "no-store"})
