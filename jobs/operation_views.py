"""The installation over HTTP: its workers and its figures."""

from django.http import HttpResponse, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.scopes import Scope
from engine.openapi import page_of
from engine.query import one_of, query_params
from jobs import metrics
from jobs.serializers import WorkerSerializer
from jobs.views import LinesRenderer, query


class WorkersView(APIView):
    """/api/v1/admin/workers."""

    required_scope = Scope.ADMIN_WORKERS

    @extend_schema(
        operation_id="admin_workers",
        parameters=[query("state", enum=["alive", "draining", "stopped", "lost"])],
        responses=page_of(WorkerSerializer),
    )
    def get(self, request: Request) -> Response:
        """Workers that gave a sign in the last day, the youngest first."""
        params = query_params(request, {"state": one_of("alive", "draining", "stopped", "lost")})
        found = metrics.workers(params.get("state"))
        return Response({"items": WorkerSerializer(found, many=True).data, "next_cursor": None})


class MetricsView(APIView):
    """/api/v1/admin/metrics."""

    required_scope = Scope.ADMIN_METRICS
    renderer_classes = [JSONRenderer, LinesRenderer]

    @extend_schema(
        operation_id="admin_metrics",
        responses={(200, "application/json"): OpenApiTypes.OBJECT, (200, "text/plain"): OpenApiTypes.STR},
    )
    def get(self, request: Request) -> HttpResponseBase:
        """The installation in numbers. `Accept: text/plain` gives Prometheus' text format."""
        query_params(request, {})
        if request.accepted_renderer.format == "json":
            return Response(metrics.metrics())
        return HttpResponse(metrics.prometheus(), content_type=metrics.PROMETHEUS)
