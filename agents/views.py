"""Agents over HTTP: read the request, call one service, shape the reply."""

import json
from http import HTTPStatus
from typing import Any

from django.db.models import Q
from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents import discovery, services
from agents.cards import CARD_SCHEMA
from agents.errors import InvalidCard
from agents.models import Agent, AgentVersion
from agents.serializers import (
    MAX_CARDS,
    AgentSerializer,
    AgentSummarySerializer,
    CardsSerializer,
    DiffSerializer,
    DiscoverSerializer,
    DiscoverySerializer,
    ImportedSerializer,
    VersionSummarySerializer,
)
from apikeys.callers import caller
from apikeys.idempotency import IDEMPOTENCY_KEY, idempotent
from apikeys.scopes import Scope
from engine.conditional import IF_NONE_MATCH, json_answer
from engine.errors import FieldError
from engine.openapi import PAGE_QUERY, page_of
from engine.pages import PAGE_PARAMS, paginate
from engine.query import Convert, one_of, query_params, text

AGENTS = "/api/v1/agents"
READ_OR_WRITE = {
    "GET": Scope.AGENTS_READ,
    "POST": Scope.AGENTS_WRITE,
    "PATCH": Scope.AGENTS_WRITE,
    "DELETE": Scope.AGENTS_WRITE,
}
# Python's end of text in the patterns, in the dialect of JSON Schema.
CARD: Any = {"application/json": json.loads(json.dumps(CARD_SCHEMA).replace(r"\\Z", "$"))}

LIST_PARAMS: dict[str, Convert] = {
    **PAGE_PARAMS,
    "status": one_of("active", "archived", "all"),
    "kind": one_of(*AgentVersion.Kind.values),
    "tag": text(40),
    "q": text(200),
}
LIST_QUERY = [
    *PAGE_QUERY,
    OpenApiParameter("status", str, enum=["active", "archived", "all"], description="`active` by default."),
    OpenApiParameter("kind", str, enum=AgentVersion.Kind.values),
    OpenApiParameter("tag", {"type": "string", "maxLength": 40}),
    OpenApiParameter("q", {"type": "string", "maxLength": 200}, description="Part of the slug or the name."),
]


class AgentsView(APIView):  # GET, POST /api/v1/agents
    """The agents the caller sees: its project's and the shared ones."""

    required_scope = READ_OR_WRITE

    @extend_schema(
        operation_id="agents_list", parameters=LIST_QUERY, responses=page_of(AgentSummarySerializer)
    )
    def get(self, request: Request) -> Response:
        """Newest first."""
        params = query_params(request, LIST_PARAMS)
        status = params.get("status", "active")
        conditions = Q() if status == "all" else Q(status=status)
        if "kind" in params:
            conditions &= Q(current_version__kind=params["kind"])
        if "tag" in params:
            conditions &= Q(current_version__tags__contains=[params["tag"]])
        if "q" in params:
            conditions &= Q(slug__icontains=params["q"]) | Q(current_version__name__icontains=params["q"])
        page = paginate(services.agents(caller(request)).filter(conditions), params)
        return Response(page.as_json(_summaries))

    @extend_schema(
        operation_id="agents_register",
        parameters=[IDEMPOTENCY_KEY],
        request=CARD,
        responses={200: AgentSerializer, 201: AgentSerializer},
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Register an agent, or a new version of one; 200 if nothing has changed."""
        version, is_new = services.put(caller(request), request.data)
        return _registered(version, is_new)


# A card as GET shows it is one that POST takes; of a project without agents there are none.
CARDS_OUT: Any = {
    "type": "object",
    "required": ["agents"],
    "properties": {"agents": {"type": "array", "items": {"type": "object"}}},
}
CARDS_IN: Any = {
    "application/json": {
        "type": "object",
        "additionalProperties": False,
        "required": ["agents"],
        "properties": {
            "agents": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_CARDS,
                "items": CARD["application/json"],
            }
        },
    }
}


class BulkView(APIView):  # GET, POST /api/v1/agents/bulk
    """Many cards at once: what GET gives, POST takes, here or on another installation."""

    required_scope = READ_OR_WRITE

    @extend_schema(operation_id="agents_export", responses={(200, "application/json"): CARDS_OUT})
    def get(self, request: Request) -> Response:
        """The cards of the project's own active agents, by slug."""
        query_params(request, {})
        return Response({"agents": services.export(caller(request))})

    @extend_schema(
        operation_id="agents_import",
        parameters=[IDEMPOTENCY_KEY],
        request=CARDS_IN,
        responses=ImportedSerializer,
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Register up to 1,000 cards; a bad one stops all, with pointers that begin with `/agents/INDEX`.

        Discovery knows them all and is calibrated on them when this answers. Repeated after a broken connection it goes
        on: equal content makes no new version. `manage.py import_agents` shows its progress and has no limit.
        """
        body = CardsSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        by = caller(request)
        try:
            stored = services.put_many(by, request.data["agents"], lambda done, of: None)
        except InvalidCard as error:
            faults = [
                FieldError(pointer=f"/agents{one['pointer']}", detail=one["detail"]) for one in error.errors
            ]
            raise InvalidCard(error.detail, errors=faults) from error
        discovery.prepare(by)
        items = [{"agent": version.agent.slug, "version": version.number} for version in stored]
        return Response({"items": items})


class AgentView(APIView):  # GET, PATCH, DELETE /api/v1/agents/{slug}
    """One agent."""

    required_scope = READ_OR_WRITE

    @extend_schema(
        operation_id="agents_get", parameters=[IF_NONE_MATCH], responses={200: AgentSerializer, 304: None}
    )
    def get(self, request: Request, slug: str) -> HttpResponseBase:
        """Its current version."""
        query_params(request, {})
        agent = services.get(caller(request), slug)
        return json_answer(request, AgentSerializer(services.current(agent)).data)

    @extend_schema(
        operation_id="agents_change", request=CARD, responses={200: AgentSerializer, 201: AgentSerializer}
    )
    def patch(self, request: Request, slug: str) -> Response:
        """A new version with some fields replaced; 200 if nothing has changed, 201 otherwise."""
        version, is_new = services.patch(caller(request), slug, request.data)
        return _registered(version, is_new)

    @extend_schema(operation_id="agents_archive", responses={200: AgentSerializer})
    def delete(self, request: Request, slug: str) -> Response:
        """Archive it: it gets no more work, and keeps its versions."""
        return _agent(services.archive(caller(request), slug))


class RestoreAgentView(APIView):  # POST /api/v1/agents/{slug}/restore
    """An archived agent."""

    required_scope = READ_OR_WRITE

    @extend_schema(operation_id="agents_restore", request=None, responses={200: AgentSerializer})
    def post(self, request: Request, slug: str) -> Response:
        """Give it work again."""
        return _agent(services.restore(caller(request), slug))


class VersionsView(APIView):  # GET /api/v1/agents/{slug}/versions
    """The versions of an agent."""

    required_scope = READ_OR_WRITE

    @extend_schema(
        operation_id="agent_versions_list", parameters=PAGE_QUERY, responses=page_of(VersionSummarySerializer)
    )
    def get(self, request: Request, slug: str) -> Response:
        """Newest first."""
        params = query_params(request, PAGE_PARAMS)
        page = paginate(services.get(caller(request), slug).versions.all(), params)
        return Response(page.as_json(lambda versions: VersionSummarySerializer(versions, many=True).data))


class VersionView(APIView):  # GET /api/v1/agents/{slug}/versions/{number}
    """One version of an agent."""

    required_scope = READ_OR_WRITE

    @extend_schema(
        operation_id="agent_versions_get",
        parameters=[IF_NONE_MATCH],
        responses={200: AgentSerializer, 304: None},
    )
    def get(self, request: Request, slug: str, number: int) -> HttpResponseBase:
        """As it was registered."""
        query_params(request, {})
        version = services.version_of(services.get(caller(request), slug), number)
        return json_answer(request, AgentSerializer(version).data)


class DiffView(APIView):  # GET /api/v1/agents/{slug}/versions/{older}/diff/{newer}
    """Two versions of an agent."""

    required_scope = READ_OR_WRITE

    @extend_schema(operation_id="agent_versions_diff", responses=DiffSerializer)
    def get(self, request: Request, slug: str, older: int, newer: int) -> Response:
        """What changed from one to the other."""
        query_params(request, {})
        agent = services.get(caller(request), slug)
        return Response(services.diff(services.version_of(agent, older), services.version_of(agent, newer)))


class DiscoverView(APIView):  # POST /api/v1/agents/discover
    """Who can do a task."""

    required_scope = Scope.AGENTS_READ

    @extend_schema(
        operation_id="agents_discover", request=DiscoverSerializer, responses={200: DiscoverySerializer}
    )
    def post(self, request: Request) -> Response:
        """The best agents with the reasons, or `none` and the nearest ones."""
        body = DiscoverSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        found = discovery.discover(
            caller(request),
            body.validated_data["task"],
            limit=body.validated_data["limit"],
            filters=body.filters_given(),
        )
        return Response(found.as_json())


def _summaries(agents: list[Agent]) -> Any:
    return AgentSummarySerializer([services.current(agent) for agent in agents], many=True).data


def _agent(agent: Agent) -> Response:
    return Response(AgentSerializer(services.current(agent)).data)


def _registered(version: AgentVersion, is_new: bool) -> Response:
    body = AgentSerializer(version).data
    if not is_new:
        return Response(body)
    return Response(body, status=HTTPStatus.CREATED, headers={"Location": f"{AGENTS}/{version.agent.slug}"})
