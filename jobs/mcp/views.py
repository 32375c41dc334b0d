"""`/mcp` over HTTP: who asks, from where, and one frame in, one out."""

import json
from dataclasses import replace
from http import HTTPStatus
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.request import validate_host
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from apikeys.callers import Caller, caller
from engine.gate import read_capped, refuse_charset
from engine.problems import Forbidden, NotAuthenticated, UnsupportedMediaType
from engine.query import query_params
from jobs.mcp import frames, methods

# Tells jobs/mcp/waiting.py, through which every answer of this view goes, to wait before it sends it on.
WAIT_HEADER = "X-Engine-Mcp-Wait"


class HoldsKey(BasePermission):
    """Any key may speak; each tool asks for the scope that it needs."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """True, or NotAuthenticated."""
        if not isinstance(request.auth, Caller):
            raise NotAuthenticated
        return True


class McpView(APIView):
    """/mcp, Streamable HTTP without sessions."""

    permission_classes = [HoldsKey]
    parser_classes = []
    schema = None  # described by the protocol itself

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse pages of other sites before anything else: a browser may send what the page could not read."""
        refuse_foreign_origin(request._request)
        super().initial(request, *args, **kwargs)

    def post(self, request: Request) -> HttpResponse:
        """Carry out one request, or take note of one notification."""
        query_params(request, {})
        if request._request.content_type != "application/json":
            raise UnsupportedMediaType("Send application/json")
        refuse_charset(request.headers.get("Content-Type"))
        body = read_capped(cast(BinaryIO, request._request), settings.ENGINE_MAX_BODY_BYTES)
        try:
            frame = frames.read(body, request.headers)
            if frame.id is None:
                return HttpResponse(status=HTTPStatus.ACCEPTED)
            return answered(frame, replace(caller(request), via="mcp"))
        except frames.Refusal as refusal:
            status, document = frames.failure(refusal)
            return frame_response(document, status)


def answered(frame: frames.Frame, by: Caller) -> HttpResponse:
    """The answer to a request. Raises Refusal."""
    try:
        answer = methods.answer(frame, by)
    except frames.Refusal as refusal:
        refusal.frame = frame
        raise
    response = frame_response(frames.success(frame.id, answer.result, is_stateless=frame.is_stateless))
    if answer.waiting is not None:
        response[WAIT_HEADER] = json.dumps(answer.waiting.as_json())
    return response


def frame_response(document: dict[str, Any], status: int = HTTPStatus.OK) -> HttpResponse:
    """A frame as an HTTP answer."""
    response = HttpResponse(frames.dumps(document), content_type="application/json", status=status)
    response["Cache-Control"] = "no-store"
    return response


def refuse_foreign_origin(request: HttpRequest) -> None:
    """Raise Forbidden where the request comes from a page that is not ours (DNS rebinding, among others)."""
    origin = request.headers.get("Origin")
    if origin is None or origin in (*settings.CORS_ALLOWED_ORIGINS, *settings.CSRF_TRUSTED_ORIGINS):
        return
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        host = ""
    host = f"[{host}]" if ":" in host else host
    if not (host and validate_host(host, settings.ALLOWED_HOSTS)):
        raise Forbidden("Pages of this origin may not speak to this server")
