"""The installation over HTTP: its workers and its figures."""

from django.http import HttpResponse, HttpResponseBase, JsonResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.scopes import Scope
from engine.openapi import page_of
from engine.query import one_of, query_params
from jobs import metrics
from jobs.serializers import WorkerSerializer
from jobs.views import query


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


METRICS_FORMATS = ("json", "prometheus", "openmetrics")


class PrometheusRenderer(BaseRenderer):
    """Prometheus' text format."""

    media_type, format, charset = "text/plain", "prometheus", "utf-8"


class OpenMetricsRenderer(BaseRenderer):
    """What Prometheus asks for first."""

    media_type, format, charset = "application/openmetrics-text", "openmetrics", "utf-8"


class MetricsView(APIView):
    """/api/v1/admin/metrics."""

    required_scope = Scope.ADMIN_METRICS
    # Prometheus lists both of its formats: the first of them here is its own first choice.
    renderer_classes = [JSONRenderer, OpenMetricsRenderer, PrometheusRenderer]

    @extend_schema(
        operation_id="admin_metrics",
        parameters=[query("format", enum=list(METRICS_FORMATS), description="Instead of `Accept`.")],
        responses={
            (200, "application/json"): OpenApiTypes.OBJECT,
            (200, "text/plain"): OpenApiTypes.STR,
            (200, "application/openmetrics-text"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request) -> HttpResponseBase:
        """The installation in numbers: JSON, or by `Accept` Prometheus' text format or OpenMetrics."""
        asked = query_params(request, {"format": one_of(*METRICS_FORMATS)})
        wanted = asked.get("format", request.accepted_renderer.format)
        if wanted == "json":
            return JsonResponse(metrics.metrics())
        text, content_type = metrics.exposition(openmetrics=wanted == "openmetrics")
        return HttpResponse(text, content_type=content_type)
