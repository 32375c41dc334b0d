"""Jobs by the hundred, jobs that continue others, and what operators hold back. One service call a view."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import caller
from apikeys.idempotency import IDEMPOTENCY_KEY, idempotent
from apikeys.scopes import Scope
from engine.errors import EngineError, ValidationFailed
from engine.problems import Forbidden, as_engine_error
from engine.query import query_params
from engine.serializers import StrictSerializer
from jobs import bulk, continuing, pausing, services
from jobs.requests import read_job
from jobs.serializers import QUEUE_NAME, JobSerializer, job_url
from jobs.views import check_may_run

ITEMS: dict[str, serializers.Field[Any, Any, Any, Any]] = {
    "items": serializers.ListField(child=serializers.DictField())
}


class BulkSerializer(StrictSerializer):
    """Jobs to submit together."""

    jobs = serializers.ListField(child=serializers.DictField(), min_length=1, max_length=bulk.MOST_JOBS)


class BulkView(APIView):
    """/api/v1/jobs/bulk."""

    required_scope = Scope.JOBS_WRITE

    @extend_schema(
        operation_id="jobs_submit_bulk",
        parameters=[IDEMPOTENCY_KEY],
        request=BulkSerializer,
        responses={200: inline_serializer("BulkResult", ITEMS)},
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Submit up to 1,000 jobs in one transaction, each with a result of its own at the same place in `items`.

        An item is `{"id", "status"}`, or `{"error"}` with a problem's `code`, `detail` and `errors`; one job's fault
        does not stop the others.
        """
        by = caller(request)
        if by.project is None:
            raise Forbidden("Jobs belong to a project: submit them with a key")
        body = BulkSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        checked = [_checked(item) for item in body.validated_data["jobs"]]
        wanted = [item for item in checked if isinstance(item, services.JobRequest)]
        for agent in {order.agent for order in wanted}:
            check_may_run(by, agent)
        submitted = iter(bulk.submit(wanted, by=by, project=by.project) if wanted else [])
        items = [
            _refused(item) if isinstance(item, EngineError) else _result(next(submitted)) for item in checked
        ]
        return Response({"items": items})


def _checked(item: dict[str, Any]) -> services.JobRequest | EngineError:
    try:
        return read_job(item)
    except serializers.ValidationError as error:
        return as_engine_error(error) or ValidationFailed()


def _result(submitted: bulk.Submitted) -> dict[str, Any]:
    if submitted.error is not None:
        return _refused(submitted.error)
    assert submitted.id is not None  # noqa: S101 (either an id or an error)
    return {"id": str(submitted.id), "status": submitted.status, "links": {"self": job_url(submitted.id)}}


def _refused(error: EngineError) -> dict[str, Any]:
    problem: dict[str, Any] = {"status": int(error.status), "code": error.code, "detail": error.detail}
    return {"error": problem | ({"errors": error.errors} if error.errors else {}) | error.fields}


class CheckpointsView(APIView):
    """/api/v1/jobs/:id/checkpoints."""

    required_scope = Scope.JOBS_READ

    @extend_schema(operation_id="jobs_checkpoints", responses=inline_serializer("Checkpoints", ITEMS))
    def get(self, request: Request, job_id: UUID) -> Response:
        """List the finished entries of a job's journal: what a retry or fork goes on from."""
        query_params(request, {})
        found = continuing.checkpoints(job_id, by=caller(request))
        return Response(
            {
                "items": [
                    {
                        "key": item.key,
                        "kind": item.kind,
                        "ended_at": item.ended_at,
                        "result": item.result,
                        "files": item.files,
                    }
                    for item in found
                ]
            }
        )


class RetrySerializer(StrictSerializer):
    """A retry takes everything from the job that it continues; what else is sent is refused, not dropped."""


class RetryView(APIView):
    """/api/v1/jobs/:id/retry."""

    required_scope = Scope.JOBS_WRITE

    @extend_schema(
        operation_id="jobs_retry", parameters=[IDEMPOTENCY_KEY], request=None, responses={201: JobSerializer}
    )
    @idempotent
    def post(self, request: Request, job_id: UUID) -> Response:
        """Make a new job that continues a failed or cancelled one from its last durable step."""
        RetrySerializer(data=request.data or {}).is_valid(raise_exception=True)
        return _made(continuing.retry(job_id, by=caller(request)))


class ForkSerializer(StrictSerializer):
    """Where a new job goes on from, and what it answers otherwise."""

    checkpoint = serializers.CharField(max_length=500)
    answers = serializers.DictField(required=False, default=dict)


class ForkView(APIView):
    """/api/v1/jobs/:id/fork."""

    required_scope = Scope.JOBS_WRITE

    @extend_schema(
        operation_id="jobs_fork",
        parameters=[IDEMPOTENCY_KEY],
        request=ForkSerializer,
        responses={201: JobSerializer},
    )
    @idempotent
    def post(self, request: Request, job_id: UUID) -> Response:
        """Make a new job from one checkpoint of an ended one; `answers` maps ask keys to other answers."""
        body = ForkSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        job = continuing.fork(
            job_id,
            checkpoint=body.validated_data["checkpoint"],
            given=body.validated_data["answers"],
            by=caller(request),
        )
        return _made(job)


def _made(job: Any) -> Response:
    return Response(JobSerializer(job).data, status=HTTPStatus.CREATED, headers={"Location": job_url(job.id)})


class QueuesView(APIView):
    """/api/v1/admin/queues."""

    required_scope = Scope.ADMIN_WORKERS

    @extend_schema(operation_id="queues_list", responses=inline_serializer("Queues", ITEMS))
    def get(self, request: Request) -> Response:
        """List queues: how many jobs wait (10,000 means at least so many), since when, and whether it is paused."""
        query_params(request, {})
        return Response(
            {
                "items": [
                    {
                        "name": queue.name,
                        "queued": queue.queued,
                        "oldest_at": queue.oldest_at,
                        "paused_at": queue.paused_at,
                        "paused_by": queue.paused_by,
                    }
                    for queue in pausing.queues(caller(request))
                ]
            }
        )


class HoldQueueView(APIView):
    """/api/v1/admin/queues/:name/pause and …/resume. Queues are shared by all projects: the operator's right."""

    required_scope = Scope.ADMIN

    @extend_schema(
        operation_id="queues_hold",
        parameters=[
            OpenApiParameter("name", OpenApiTypes.STR, OpenApiParameter.PATH, pattern=rf"^{QUEUE_NAME}$"),
            OpenApiParameter("action", OpenApiTypes.STR, OpenApiParameter.PATH, enum=["pause", "resume"]),
        ],
        request=None,
        responses={204: None},
    )
    def post(self, request: Request, name: str, action: str) -> Response:
        """Pause a queue, or resume it. Running jobs go on."""
        act = pausing.pause_queue if action == "pause" else pausing.resume_queue
        act(name, by=caller(request))
        return Response(status=HTTPStatus.NO_CONTENT)


class HoldAgentView(APIView):
    """/api/v1/agents/:slug/pause and …/resume."""

    required_scope = Scope.AGENTS_WRITE

    @extend_schema(
        operation_id="agents_hold",
        parameters=[
            OpenApiParameter("slug", OpenApiTypes.STR, OpenApiParameter.PATH),
            OpenApiParameter("action", OpenApiTypes.STR, OpenApiParameter.PATH, enum=["pause", "resume"]),
        ],
        request=None,
        responses={204: None},
    )
    def post(self, request: Request, slug: str, action: str) -> Response:
        """Pause an agent's jobs, or resume them. Those of a shared agent are the operator's to pause."""
        act = pausing.pause_agent if action == "pause" else pausing.resume_agent
        act(slug, by=caller(request))
        return Response(status=HTTPStatus.NO_CONTENT)
