"""Every refusal under /api/ as problem+json (RFC 9457): ours, REST framework's, Django's, the database's."""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from django.core import exceptions as django_errors
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.core.signals import got_request_exception
from django.db import DatabaseError, DataError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions as drf_errors
from rest_framework.request import Request

from engine.errors import EngineError, FieldError, NotFound, ValidationFailed

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
API_PREFIX = "/api/"
READ_ONLY_TRANSACTION = "25006"
# How many faults one answer lists; a hostile body could have as many as it has members.
MAX_ERRORS = 50


class BadRequest(EngineError):
    """The request is not proper HTTP for this address; the detail says what is wrong with it."""

    status, code, title = HTTPStatus.BAD_REQUEST, "bad_request", "The request cannot be read"


class NotAuthenticated(EngineError):
    """No API key came with the request. Send `Authorization: Bearer engine_live_…`."""

    status, code, title = HTTPStatus.UNAUTHORIZED, "not_authenticated", "An API key is needed"

    def __init__(self, detail: str = "", **fields: Any) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"}, **fields)


class Forbidden(EngineError):
    """The caller is known and may not do this."""

    status, code, title = HTTPStatus.FORBIDDEN, "forbidden", "This is not allowed"


class MethodNotAllowed(EngineError):
    """The address exists but does not take this method; `Allow` lists those it takes."""

    status, code, title = (
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "The method is not allowed here",
    )


class NotAcceptable(EngineError):
    """Nothing that the `Accept` header asks for can be sent."""

    status, code, title = HTTPStatus.NOT_ACCEPTABLE, "not_acceptable", "No acceptable format"


class PreconditionFailed(EngineError):
    """`If-Match` or `If-Unmodified-Since` asks for another state than the object has; nothing was done."""

    status, code = HTTPStatus.PRECONDITION_FAILED, "precondition_failed"
    title = "The object has changed"


class HeadTooLarge(EngineError):
    """The address and the headers together are over 16 KiB, or there are more than 500 headers."""

    status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"
    title = "The address or the headers are too long"


class BodyTooLarge(EngineError):
    """The body, or one part of it, is over the installation's limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"
    title = "The body is too large"


class UnsupportedMediaType(EngineError):
    """The body's content type is not taken here; most addresses take `application/json` alone."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"
    title = "The content type is not supported"


class TooManyRequests(EngineError):
    """Requests come too fast; `Retry-After` says when to go on."""

    status, code, title = HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", "Too many requests"


class UnacceptableValue(EngineError):
    """The database refused a value that no check had caught before; nothing was changed."""

    status, code, title = HTTPStatus.BAD_REQUEST, "unacceptable_value", "A value cannot be stored"


class InternalError(EngineError):
    """A fault of Engine itself; it is in the server's log under the `request_id`."""

    status, code, title = (
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "Something went wrong on our side",
    )


class Unavailable(EngineError):
    """The database is away or too busy for the moment. Nothing was changed; try again after `Retry-After`."""

    status, code, title = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "Engine is not available right now"
    RETRY_AFTER_SECONDS: ClassVar[int] = 2

    def __init__(self, detail: str = "", **fields: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(self.RETRY_AFTER_SECONDS)}, **fields)


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """REST framework's EXCEPTION_HANDLER: answer whatever a view raised."""
    request = context.get("request")
    return respond(exc, request._request if isinstance(request, Request) else request)


def respond(exc: BaseException, request: HttpRequest | None) -> HttpResponse:
    """The answer to an exception of any kind; one that nobody foresaw is logged and becomes a 500."""
    error = as_engine_error(exc)
    if error is None:
        logger.error("Unhandled %s", type(exc).__name__, exc_info=exc, extra={"request": request})
        got_request_exception.send(sender=None, request=request)  # for error trackers and the test client
        error = InternalError()
    elif isinstance(error, Unavailable | UnacceptableValue):
        logger.warning("%s: %s", error.code, exc, exc_info=isinstance(error, UnacceptableValue) and exc)
    return problem(error, request)


def problem(error: EngineError, request: HttpRequest | None, request_id: str = "") -> HttpResponse:
    """One error as a problem document; where there is no request yet, `request_id` is its id."""
    document: dict[str, Any] = {
        "type": f"urn:engine:problem:{error.code}",
        "title": error.title,
        "status": int(error.status),
        "detail": error.detail,
        "code": error.code,
        "request_id": getattr(request, "request_id", request_id),
    }
    if error.errors:
        document["errors"] = error.errors[:MAX_ERRORS]
    # ASCII on purpose: a detail may quote a lone surrogate, which UTF-8 cannot carry.
    body = json.dumps(document | error.fields, cls=DjangoJSONEncoder)
    response = HttpResponse(body, content_type=CONTENT_TYPE, status=error.status, headers=error.headers)
    response["Cache-Control"] = "no-store"
    return response


def as_engine_error(exc: BaseException) -> EngineError | None:
    """What an exception means to the caller, or None if it means a fault of ours."""
    match exc:
        case EngineError():
            return exc
        case drf_errors.ValidationError():
            errors = list(field_errors(exc.detail))
            return ValidationFailed(in_short(errors), errors=errors)
        case drf_errors.APIException():
            return _from_rest_framework(exc)
        case Http404():
            return NotFound()
        case django_errors.PermissionDenied():
            return Forbidden()
        case RequestDataTooBig():
            return BodyTooLarge()
        case SuspiciousOperation():
            return BadRequest()
        case UnreadablePostError():
            return BadRequest("The connection broke before the body was complete")
        case DatabaseError() | InterfaceError():
            return _from_database(exc)
        case _:
            return None


def field_errors(detail: Any, pointer: str = "") -> Iterator[FieldError]:
    """REST framework's nested errors as a flat list with JSON pointers (RFC 6901)."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            whole = name == "non_field_errors"
            yield from field_errors(inner, pointer if whole else f"{pointer}/{pointer_part(name)}")
    elif isinstance(detail, list | tuple):
        for index, inner in enumerate(detail):
            nested = isinstance(inner, Mapping | list | tuple)
            yield from field_errors(inner, f"{pointer}/{index}" if nested else pointer)
    else:
        yield {"pointer": pointer, "detail": str(detail)}


def in_short(errors: list[FieldError]) -> str:
    """The first fault as a sentence for the `detail`, and how many there are besides."""
    if not errors:
        return ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{errors[0]['pointer'] or 'The body'}: {errors[0]['detail']}{more}"


def pointer_part(name: object) -> str:
    """One step of a JSON pointer, escaped, and cut short because a client chose it."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    text = text if len(text) <= 100 else text[:100] + "…"
    return text.replace("~", "~0").replace("/", "~1")


def _from_rest_framework(exc: drf_errors.APIException) -> EngineError:
    match exc:
        case drf_errors.NotAuthenticated() | drf_errors.AuthenticationFailed():
            return NotAuthenticated()
        case drf_errors.PermissionDenied():
            return Forbidden(str(exc.detail))
        case drf_errors.NotFound():
            return NotFound()
        case drf_errors.MethodNotAllowed():
            return MethodNotAllowed(str(exc.detail))
        case drf_errors.NotAcceptable():
            return NotAcceptable()
        case drf_errors.UnsupportedMediaType():
            return UnsupportedMediaType(str(exc.detail))
        case drf_errors.Throttled():
            return TooManyRequests(headers={"Retry-After": str(math.ceil(getattr(exc, "wait", None) or 1))})
        case drf_errors.ParseError():
            return BadRequest(str(exc.detail))
        case _:
            return InternalError() if exc.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest()


def _from_database(exc: DatabaseError | InterfaceError) -> EngineError | None:
    sqlstate = getattr(exc.__cause__, "sqlstate", None)
    if isinstance(exc, OperationalError | InterfaceError) or sqlstate == READ_ONLY_TRANSACTION:
        # Away, starting, full, a lock or statement timed out, or failed over to a standby.
        return Unavailable()
    return UnacceptableValue() if isinstance(exc, DataError) else None


# --- outside REST framework: unknown addresses, plain views, middleware ---


class ProblemsMiddleware:
    """Let nothing under /api/ answer with an HTML page, in DEBUG neither."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """The answer, as a problem document if it was a page of an error."""
        response = self.get_response(request)
        is_page = response.get("Content-Type", "").startswith("text/html")
        if not (is_page and response.status_code >= HTTPStatus.BAD_REQUEST and _is_api(request)):
            return response
        answer = problem(_by_status(response.status_code), request)
        for name in ("Allow", "Retry-After"):
            if name in response:
                answer[name] = response[name]
        return answer

    def process_exception(self, request: HttpRequest, exc: Exception) -> HttpResponse | None:
        """Answer what a view outside REST framework raised."""
        return respond(exc, request) if _is_api(request) else None


_BY_STATUS: dict[int, type[EngineError]] = {
    int(kind.status): kind
    for kind in (
        BadRequest,
        NotAuthenticated,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        NotAcceptable,
        PreconditionFailed,
        BodyTooLarge,
        UnsupportedMediaType,
        TooManyRequests,
        Unavailable,
    )
}


def _by_status(status: int) -> EngineError:
    fallback = BadRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else InternalError
    return _BY_STATUS.get(status, fallback)()


@csrf_exempt
def unknown_address(request: HttpRequest) -> HttpResponse:
    """The last route under /api/: an address that does not exist."""
    return problem(NotFound("There is no such address"), request)


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's page for a bad request; a problem document under /api/."""
    return respond(exception, request) if _is_api(request) else defaults.bad_request(request, exception)


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's page for a forbidden one; a problem document under /api/."""
    return respond(exception, request) if _is_api(request) else defaults.permission_denied(request, exception)


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's page for an unknown one; a problem document under /api/."""
    return unknown_address(request) if _is_api(request) else defaults.page_not_found(request, exception)


def handler500(request: HttpRequest) -> HttpResponse:
    """Django's page for a fault; a problem document under /api/, and 503 everywhere while the database is away."""
    exc = sys.exc_info()[1]
    error = (as_engine_error(exc) if exc else None) or InternalError()
    if _is_api(request):
        return problem(error, request)
    page = defaults.server_error(request, "503.html" if isinstance(error, Unavailable) else "500.html")
    if isinstance(error, Unavailable):
        page.status_code = error.status
        for name, value in error.headers.items():
            page[name] = value
    return page


def _is_api(request: HttpRequest) -> bool:
    return f"{request.path_info}/".startswith(API_PREFIX)
