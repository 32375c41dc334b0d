"""Webhooks over HTTP: read the request, call one service, shape the reply."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import Caller, caller
from apikeys.idempotency import IDEMPOTENCY_KEY, idempotent
from apikeys.scopes import Scope
from engine.openapi import PAGE_QUERY, page_of, several
from engine.pages import PAGE_PARAMS, paginate
from engine.problems import Forbidden
from engine.query import Convert, Several, identifier, one_of, query_params, text
from engine.serializers import StrictSerializer
from jobs.notifying import services
from jobs.notifying.models import Delivery, WebhookEndpoint
from jobs.notifying.serializers import (
    DeliverySerializer,
    NewWebhook,
    WebhookSerializer,
    WebhookSettings,
    WebhookWithSecretSerializer,
)

WEBHOOKS = "/api/v1/webhooks"
NO_STORE = {"Cache-Control": "no-store"}


class WebhooksView(APIView):  # GET, POST /api/v1/webhooks
    """The addresses that hear of the project's jobs."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(operation_id="webhooks_list", parameters=PAGE_QUERY, responses=page_of(WebhookSerializer))
    def get(self, request: Request) -> Response:
        """Newest first."""
        params = query_params(request, PAGE_PARAMS)
        page = paginate(WebhookEndpoint.objects.visible_to(caller(request)), params)
        return Response(page.as_json(lambda rows: WebhookSerializer(rows, many=True).data))

    @extend_schema(
        operation_id="webhooks_create", request=NewWebhook, responses={201: WebhookWithSecretSerializer}
    )
    def post(self, request: Request) -> Response:
        """Make an endpoint; the answer alone shows the secret that its messages are signed with."""
        endpoint, secret = services.create(inside_project(request), **validated(NewWebhook, request))
        body = {**WebhookSerializer(endpoint).data, "secret": secret}
        headers = {"Location": f"{WEBHOOKS}/{endpoint.id}", **NO_STORE}
        return Response(body, status=HTTPStatus.CREATED, headers=headers)


class WebhookView(APIView):  # GET, PATCH, DELETE /api/v1/webhooks/{id}
    """One endpoint of the project."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(operation_id="webhooks_get", responses=WebhookSerializer)
    def get(self, request: Request, webhook_id: UUID) -> Response:
        """Everything about it but the secret."""
        query_params(request, {})
        return Response(WebhookSerializer(services.get(caller(request), webhook_id)).data)

    @extend_schema(operation_id="webhooks_change", request=WebhookSettings, responses=WebhookSerializer)
    def patch(self, request: Request, webhook_id: UUID) -> Response:
        """Change its address or events, or switch it off and on."""
        changes = validated(WebhookSettings, request)
        return Response(WebhookSerializer(services.change(caller(request), webhook_id, **changes)).data)

    @extend_schema(operation_id="webhooks_delete", responses={204: None})
    def delete(self, request: Request, webhook_id: UUID) -> Response:
        """Forget it; messages that wait for another try are not sent."""
        services.delete(caller(request), webhook_id)
        return Response(status=HTTPStatus.NO_CONTENT)


class RotateWebhookView(APIView):  # POST /api/v1/webhooks/{id}/rotate
    """A new secret for an endpoint."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(operation_id="webhooks_rotate", request=None, responses={200: WebhookWithSecretSerializer})
    def post(self, request: Request, webhook_id: UUID) -> Response:
        """Make a new secret, shown in this answer alone; the old one signs beside it for 24 hours more."""
        validated(StrictSerializer, request)
        endpoint, secret = services.rotate(caller(request), webhook_id)
        return Response({**WebhookSerializer(endpoint).data, "secret": secret}, headers=NO_STORE)


class PingWebhookView(APIView):  # POST /api/v1/webhooks/{id}/ping
    """A message to see whether an endpoint hears."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(
        operation_id="webhooks_ping",
        parameters=[IDEMPOTENCY_KEY],
        request=None,
        responses={202: DeliverySerializer},
    )
    @idempotent
    def post(self, request: Request, webhook_id: UUID) -> Response:
        """Send `webhook.ping`; the delivery tells how it went."""
        validated(StrictSerializer, request)
        delivery = services.ping(caller(request), webhook_id)
        return Response(DeliverySerializer(delivery).data, status=HTTPStatus.ACCEPTED)


class JobSecretView(APIView):  # POST /api/v1/webhooks/job-secret
    """The secret for messages to jobs' own `webhook_url`."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(
        operation_id="webhooks_job_secret",
        request=None,
        responses={200: inline_serializer("JobWebhookSecret", {"secret": serializers.CharField()})},
    )
    def post(self, request: Request) -> Response:
        """Show the project's secret; asked again, a new one, beside which the old one signs for 24 hours more."""
        validated(StrictSerializer, request)
        return Response({"secret": services.job_secret(inside_project(request))}, headers=NO_STORE)


class DeliveriesView(APIView):  # GET /api/v1/webhooks/deliveries
    """What was sent, to whom, and how it went."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(
        operation_id="webhooks_deliveries",
        parameters=[
            *PAGE_QUERY,
            several("state", {"enum": Delivery.State.values}),
            OpenApiParameter("job", UUID, description="A job's id."),
            OpenApiParameter("webhook", UUID, description="An endpoint's id."),
            OpenApiParameter("event", {"type": "string", "maxLength": 60}),
        ],
        responses=page_of(DeliverySerializer),
    )
    def get(self, request: Request) -> Response:
        """Newest first, webhooks and e-mails."""
        spec: dict[str, Convert] = {
            **PAGE_PARAMS,
            "state": Several(one_of(*Delivery.State.values)),
            "job": identifier,
            "webhook": identifier,
            "event": text(60),
        }
        params = query_params(request, spec)
        rows = Delivery.objects.visible_to(caller(request))
        if "state" in params:
            rows = rows.filter(state__in=params["state"])
        if "job" in params:
            rows = rows.filter(job_id=params["job"])
        if "webhook" in params:
            rows = rows.filter(endpoint_id=params["webhook"])
        if "event" in params:
            rows = rows.filter(event=params["event"])
        return Response(paginate(rows, params).as_json(lambda page: DeliverySerializer(page, many=True).data))


class RedeliverView(APIView):  # POST /api/v1/webhooks/deliveries/{id}/redeliver
    """Another try of a delivery."""

    required_scope = Scope.ADMIN_WEBHOOKS

    @extend_schema(operation_id="webhooks_redeliver", request=None, responses={202: DeliverySerializer})
    def post(self, request: Request, delivery_id: UUID) -> Response:
        """Send it again now, under the same id, with all tries anew."""
        validated(StrictSerializer, request)
        delivery = services.redeliver(caller(request), delivery_id)
        return Response(DeliverySerializer(delivery).data, status=HTTPStatus.ACCEPTED)


def inside_project(request: Request) -> Caller:
    """The caller, who must hold a key: webhooks belong to a project. Raises Forbidden."""
    by = caller(request)
    if by.project is None:
        raise Forbidden("Webhooks belong to a project: make them with a key, or in the dashboard")
    return by


def validated(serializer: type[StrictSerializer], request: Request) -> dict[str, Any]:
    """The body as the serializer understands it. Raises ValidationError."""
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    return dict(body.validated_data)
