"""What every answer carries: the request's id and the headers that tell browsers what not to do."""

import re
from collections.abc import Callable
from typing import Final

from django.http import HttpRequest, HttpResponseBase
from uuid_utils.compat import uuid7

from engine.bridge import ROUTE, SCOPE
from engine.logs import log_fields

GetResponse = Callable[[HttpRequest], HttpResponseBase]

REQUEST_ID_HEADER: Final = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(proposed: str | None) -> str:
    """The id that a client or proxy sent, if it is fit for logs and headers; else a new one."""
    return proposed if proposed and _REQUEST_ID.fullmatch(proposed) else str(uuid7())


class RequestIdMiddleware:
    """`X-Request-Id` in and out; the same id is `request.request_id` and stands in every log line."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer with the id."""
        given = request_id(request.headers.get(REQUEST_ID_HEADER))
        request.request_id = given  # type: ignore[attr-defined]  # read by engine.problems and audit rows
        with log_fields(request=given):
            response = self.get_response(request)
        note_route(request)
        response[REQUEST_ID_HEADER] = given
        return response


def note_route(request: HttpRequest) -> None:
    """Tell the server which route took the request: `api/v1/jobs/<uuid:job_id>`, never the address itself."""
    scope, match = request.META.get(SCOPE), request.resolver_match
    if scope is not None and match is not None:
        scope[ROUTE] = "/" + (match.route or "")
    elif scope is not None and request.path_info.startswith("/health/"):
        scope[ROUTE] = "/health"


_STRICT = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
# The admin theme's scripts (Alpine) compile expressions and set styles; charts and previews use data: and blob:.
_ADMIN = (
    f"{_STRICT}; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:"
)
# Swagger UI sets styles and carries its icons as data: addresses; its script is a file of ours.
_API_DOCS = f"{_STRICT}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
POLICIES: Final = (("/admin/", _ADMIN), ("/api/docs", _API_DOCS))


class SecurityHeadersMiddleware:
    """A content security policy on every answer that brings none of its own, and no access to devices."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer with the headers."""
        response = self.get_response(request)
        headers = response.headers
        if "Content-Security-Policy" not in headers:
            headers["Content-Security-Policy"] = policy_for(request.path_info)
        headers.setdefault(
            "Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
        )
        headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        return response


def policy_for(path: str) -> str:
    """Strict everywhere; looser only under the prefixes that cannot work otherwise."""
    return next((policy for prefix, policy in POLICIES if path.startswith(prefix)), _STRICT)
