"""A small API of views that exist only to be sent things: the door, the gate and the errors before any app."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path, re_path
from django.views.decorators.http import require_GET
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import caller
from apikeys.idempotency import idempotent
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.gate import StrictJSONParser, StrictMultiPartParser
from engine.pages import PAGE_PARAMS, paginate
from engine.problems import handler400, handler403, handler404, handler500, unknown_address
from engine.query import Convert, Several, flag, identifier, instant, one_of, query_params, text, whole_number
from engine.serializers import StrictSerializer

__all__ = ["handler400", "handler403", "handler404", "handler500"]


class Behaviour:
    """What the next request does; a test sets it, and reads how often it was done."""

    raises: Callable[[], BaseException] | None = None
    before_answer: Callable[[], None] | None = None
    runs = 0
    lock = Lock()

    @classmethod
    def reset(cls) -> None:
        cls.raises, cls.before_answer, cls.runs = None, None, 0


class OpenView(APIView):
    authentication_classes = ()
    permission_classes = ()
    throttle_classes = ()


class EchoView(OpenView):
    def post(self, request: Request) -> Response:
        return Response({"got": request.data})


class InnerSerializer(StrictSerializer):
    size = serializers.IntegerField()


class FormSerializer(StrictSerializer):
    name = serializers.CharField(max_length=5)
    parts = InnerSerializer(many=True, required=False)
    tags = serializers.ListField(child=serializers.IntegerField(), required=False)


class FormView(OpenView):
    def post(self, request: Request) -> Response:
        body = FormSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        return Response(body.validated_data)


class UploadView(OpenView):
    parser_classes = (StrictJSONParser, StrictMultiPartParser)

    def post(self, request: Request) -> Response:
        return Response({name: str(value) for name, value in request.data.items()})


class QueryView(OpenView):
    SPEC: dict[str, Convert] = {
        "status": Several(one_of("queued", "running")),
        "order": one_of("created_at", "-created_at"),
        "limit": whole_number(1, 200),
        "q": text(20),
        "after": instant,
        "id": identifier,
        "deep": flag,
    }

    def get(self, request: Request) -> Response:
        return Response(query_params(request, self.SPEC))


class PagesView(OpenView):
    def get(self, request: Request) -> Response:
        page = paginate(Project.objects.all(), query_params(request, PAGE_PARAMS))
        return Response(page.as_json(lambda projects: [project.slug for project in projects]))


class RaisingView(OpenView):
    def get(self, request: Request) -> Response:
        assert Behaviour.raises is not None
        raise Behaviour.raises()


class GuardedView(APIView):
    required_scope = {"GET": Scope.JOBS_READ, "POST": Scope.JOBS_WRITE}

    def get(self, request: Request) -> Response:
        return Response({"caller": caller(request).label})

    def post(self, request: Request) -> Response:
        return Response({"caller": caller(request).label})


class RunView(APIView):
    required_scope = Scope.JOBS_WRITE
    takes_run_scope = True

    def post(self, request: Request) -> Response:
        by = caller(request)
        return Response({"may": by.may(Scope.JOBS_WRITE, agent_slug=request.data["agent"])})


class ForgottenView(APIView):
    """Its author named no scope."""

    def get(self, request: Request) -> Response:
        return Response({})


class WorkView(APIView):
    required_scope = Scope.JOBS_WRITE
    parser_classes = (StrictJSONParser, StrictMultiPartParser)

    @idempotent
    def post(self, request: Request) -> Response:
        with Behaviour.lock:
            Behaviour.runs += 1
        if agent := request.data.get("agent"):
            assert caller(request).may(Scope.JOBS_WRITE, agent_slug=agent)
        Project.objects.create(slug=f"made-{Behaviour.runs}", name="x")
        if Behaviour.before_answer is not None:
            Behaviour.before_answer()
        if Behaviour.raises is not None:
            raise Behaviour.raises()
        return Response({"run": Behaviour.runs}, status=201, headers={"Location": f"/made/{Behaviour.runs}"})


def plain(request: HttpRequest) -> HttpResponse:
    if Behaviour.raises is not None:
        raise Behaviour.raises()
    return HttpResponse("ok")


urlpatterns: list[Any] = [
    path("api/echo", EchoView.as_view()),
    path("api/form", FormView.as_view()),
    path("api/upload", UploadView.as_view()),
    path("api/query", QueryView.as_view()),
    path("api/pages", PagesView.as_view()),
    path("api/raise", RaisingView.as_view()),
    path("api/guarded", GuardedView.as_view()),
    path("api/run", RunView.as_view()),
    path("api/forgotten", ForgottenView.as_view()),
    path("api/work", WorkView.as_view()),
    path("api/plain", plain),
    path("api/get-only", require_GET(plain)),
    path("page", plain),
    re_path("^api/", unknown_address),
]
