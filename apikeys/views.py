"""Keys and projects over HTTP: read the request, call one service, shape the reply."""

from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys import services
from apikeys.callers import caller
from apikeys.models import ApiKey, Project
from apikeys.scopes import Scope
from apikeys.serializers import (
    KeySerializer,
    KeySettings,
    KeyWithSecretSerializer,
    NewKey,
    NewProject,
    ProjectSerializer,
    ProjectSettings,
    ProjectWithKeySerializer,
    Rotation,
)
from engine.openapi import PAGE_QUERY, page_of
from engine.pages import PAGE_PARAMS, paginate
from engine.query import query_params
from engine.serializers import StrictSerializer

KEYS = "/api/v1/admin/keys"
PROJECTS = "/api/v1/admin/projects"


class KeysView(APIView):  # GET, POST /api/v1/admin/keys
    """The keys of the caller's project."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="keys_list", parameters=PAGE_QUERY, responses=page_of(KeySerializer))
    def get(self, request: Request) -> Response:
        """Newest first, revoked ones included."""
        params = query_params(request, PAGE_PARAMS)
        page = paginate(ApiKey.objects.visible_to(caller(request)).select_related("project"), params)
        return Response(page.as_json(lambda keys: KeySerializer(keys, many=True).data))

    @extend_schema(operation_id="keys_create", request=NewKey, responses={201: KeyWithSecretSerializer})
    def post(self, request: Request) -> Response:
        """Make a key; the answer alone shows its secret."""
        key, secret = services.create_key(caller(request), **validated(NewKey, request))
        return shown_once(key, secret)


class KeyView(APIView):  # GET, PATCH, DELETE /api/v1/admin/keys/{id}
    """One key of the caller's project."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="keys_get", responses=KeySerializer)
    def get(self, request: Request, key_id: UUID) -> Response:
        """Everything about it but the secret."""
        query_params(request, {})
        return Response(KeySerializer(services.get_key(caller(request), key_id)).data)

    @extend_schema(operation_id="keys_change", request=KeySettings, responses=KeySerializer)
    def patch(self, request: Request, key_id: UUID) -> Response:
        """Change its name, powers and limits, from the next request on."""
        changes = validated(KeySettings, request)
        return Response(KeySerializer(services.change_key(caller(request), key_id, **changes)).data)

    @extend_schema(operation_id="keys_revoke", responses={200: KeySerializer})
    def delete(self, request: Request, key_id: UUID) -> Response:
        """Revoke it, from the next request on; the row stays to be seen."""
        return Response(KeySerializer(services.revoke_key(caller(request), key_id)).data)


class RotateKeyView(APIView):  # POST /api/v1/admin/keys/{id}/rotate
    """A new secret for the same powers."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="keys_rotate", request=Rotation, responses={201: KeyWithSecretSerializer})
    def post(self, request: Request, key_id: UUID) -> Response:
        """Make the successor; the old secret is accepted for `overlap_seconds` longer, 24 hours by default."""
        seconds = validated(Rotation, request).get("overlap_seconds")
        overlap = services.DEFAULT_OVERLAP if seconds is None else timedelta(seconds=seconds)
        return shown_once(*services.rotate_key(caller(request), key_id, overlap=overlap))


class DisableKeyView(APIView):  # POST /api/v1/admin/keys/{id}/disable
    """Switch a key off."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="keys_disable", request=None, responses={200: KeySerializer})
    def post(self, request: Request, key_id: UUID) -> Response:
        """Refuse it, from the next request on, until it is enabled."""
        validated(StrictSerializer, request)
        return Response(KeySerializer(services.disable_key(caller(request), key_id)).data)


class EnableKeyView(APIView):  # POST /api/v1/admin/keys/{id}/enable
    """Switch a key on again."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="keys_enable", request=None, responses={200: KeySerializer})
    def post(self, request: Request, key_id: UUID) -> Response:
        """Accept it again."""
        validated(StrictSerializer, request)
        return Response(KeySerializer(services.enable_key(caller(request), key_id)).data)


class ProjectsView(APIView):  # GET, POST /api/v1/admin/projects
    """The projects that the caller may see: a key's is its own."""

    required_scope = {"GET": Scope.ADMIN_KEYS, "POST": Scope.ADMIN}

    @extend_schema(operation_id="projects_list", parameters=PAGE_QUERY, responses=page_of(ProjectSerializer))
    def get(self, request: Request) -> Response:
        """Newest first."""
        params = query_params(request, PAGE_PARAMS)
        page = paginate(Project.objects.visible_to(caller(request)), params)
        return Response(page.as_json(lambda projects: ProjectSerializer(projects, many=True).data))

    @extend_schema(
        operation_id="projects_create", request=NewProject, responses={201: ProjectWithKeySerializer}
    )
    def post(self, request: Request) -> Response:
        """Make a project with a first key, which holds every right inside it; the answer alone shows the secret."""
        by, fields = caller(request), validated(NewProject, request)
        with transaction.atomic():
            project = services.create_project(by, **fields)
            key, secret = services.first_key(by, project, name="first key")
        body = {**ProjectSerializer(project).data, "key": {**KeySerializer(key).data, "secret": secret}}
        return created(body, f"{PROJECTS}/{project.slug}")


class ProjectView(APIView):  # GET, PATCH /api/v1/admin/projects/{slug}
    """One project."""

    required_scope = Scope.ADMIN_KEYS

    @extend_schema(operation_id="projects_get", responses=ProjectSerializer)
    def get(self, request: Request, slug: str) -> Response:
        """Its preferences and limits."""
        query_params(request, {})
        return Response(ProjectSerializer(services.get_project(caller(request), slug)).data)

    @extend_schema(operation_id="projects_change", request=ProjectSettings, responses=ProjectSerializer)
    def patch(self, request: Request, slug: str) -> Response:
        """Change its preferences; limits need the scope `admin`."""
        changes = validated(ProjectSettings, request)
        return Response(ProjectSerializer(services.change_project(caller(request), slug, **changes)).data)


def validated(
    serializer: type[StrictSerializer], request: Request, *, partial: bool = False
) -> dict[str, Any]:
    """The body as the serializer understands it. Raises ValidationError."""
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    return dict(body.validated_data)


def shown_once(key: ApiKey, secret: str) -> Response:
    """A new key with its secret, which no cache may keep."""
    return created({**KeySerializer(key).data, "secret": secret}, f"{KEYS}/{key.id}")


def created(body: dict[str, Any], location: str) -> Response:
    """201 with the address of what was made."""
    headers = {"Location": location, "Cache-Control": "no-store"}
    return Response(body, status=HTTPStatus.CREATED, headers=headers)
