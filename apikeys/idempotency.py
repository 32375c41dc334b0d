"""`Idempotency-Key`: a POST that is sent again, by a client that never saw the answer, does its work once.

The record is inserted in the transaction of the work itself, so it never outlives a failure, and a twin that
arrives meanwhile waits on the unique index for the first one's answer.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import update_wrapper
from http import HTTPStatus
from typing import Concatenate, ParamSpec, TypeVar

from django.core.files.uploadedfile import UploadedFile
from django.db import OperationalError, connection, transaction
from django.http import HttpResponse, QueryDict
from drf_spectacular.utils import OpenApiParameter
from psycopg.errors import LockNotAvailable
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apikeys.callers import Caller, caller
from apikeys.errors import (
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidIdempotencyKey,
    ScopeMissing,
)
from apikeys.models import IdempotencyRecord, Project
from apikeys.queries import claim_idempotency_key
from engine.problems import as_engine_error, respond

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    # Spaces at the ends do not survive HTTP.
    {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    OpenApiParameter.HEADER,
    description="The same key and body again within 24 hours: the same answer again.",
)

P = ParamSpec("P")
V = TypeVar("V", bound=APIView)
Handler = Callable[Concatenate[V, Request, P], Response]
Wrapped = Callable[Concatenate[V, Request, P], HttpResponse]

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
# How long a twin waits for the first answer: handlers take milliseconds, and a waiting twin holds a thread.
TWIN_WAITS_SECONDS = 5
KEPT_HEADERS = ("Location", "Content-Type", "ETag")
# The request was refused before its work began: the client may mend it and use the key again. All other
# refusals below 500 are answers like any other.
NOT_AN_ANSWER = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)


def idempotent(handler: Handler[V, P]) -> Wrapped[V, P]:
    """Let a DRF view's `post` answer a repeated `Idempotency-Key` with its first answer, kept for 24 hours.

    The handler runs in one transaction with the record: whatever it must do even if that rolls back, or only
    once it is durable, belongs into `transaction.on_commit`. The replay carries `Idempotency-Replayed: true`
    and is given only to callers who hold the rights that the first answer was given by. Not for answers that
    show a secret, because they are stored. Without the header the handler runs as it is.
    """

    def wrapped(view: V, request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        by = caller(request)
        key = request.headers.get("Idempotency-Key")
        if key is None or by.project is None:
            return handler(view, request, *args, **kwargs)
        if not _KEY.fullmatch(key):
            raise InvalidIdempotencyKey
        fingerprint = request_hash(request)  # before the transaction: it may read large files
        with transaction.atomic():
            record_id = _claim(by.project, key, request, fingerprint)
            if record_id is None:
                return _replay(by, by.project, key, fingerprint)
            answer = _answer(lambda: handler(view, request, *args, **kwargs), request)
            if _is_kept(answer):
                _keep(record_id, answer, by)
            else:
                transaction.set_rollback(True)
        return answer

    update_wrapper(wrapped, handler)
    return wrapped


def request_hash(request: Request) -> bytes:
    """SHA-256 over method, address and body as it was understood, files read in chunks.

    Not over the raw bytes: a client that repeats a multipart request draws a new boundary.
    """
    hashed = hashlib.sha256()
    for part in _parts(request):
        hashed.update(len(part).to_bytes(8, "big"))  # so that no two lists of parts read the same
        hashed.update(part)
    return hashed.digest()


def _parts(request: Request) -> Iterator[bytes]:
    yield str(request.method).encode()
    yield request._request.get_full_path().encode()
    data = request.data
    if not isinstance(data, QueryDict):
        yield json.dumps(data, sort_keys=True).encode()
        return
    for name in sorted(data):
        for value in data.getlist(name):
            yield name.encode()
            if isinstance(value, UploadedFile):
                yield f"{value.name}\0{value.content_type}\0{value.size}".encode()
                yield from value.chunks()
                value.seek(0)
            else:
                yield value.encode()


def _claim(project: Project, key: str, request: Request, fingerprint: bytes) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{TWIN_WAITS_SECONDS}s"])
    try:
        return claim_idempotency_key(
            project_id=project.id,
            key=key,
            method=request.method,
            path=request._request.get_full_path(),
            request_hash=fingerprint,
        )
    except OperationalError as exc:
        if isinstance(exc.__cause__, LockNotAvailable):
            raise IdempotencyInProgress(headers={"Retry-After": "1"}) from exc
        raise


def _answer(handle: Callable[[], Response], request: Request) -> HttpResponse:
    """Run the handler in a savepoint, and turn its answer or refusal into bytes. Faults of ours pass through."""
    try:
        with transaction.atomic():
            response = handle()
    except Exception as exc:  # sorted just below: what is no refusal is raised again
        error = as_engine_error(exc)
        if error is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return respond(error, request._request)
    body = JSONRenderer().render(response.data)
    answer = HttpResponse(body, status=response.status_code, content_type=JSONRenderer.media_type)
    for name, value in response.items():
        if name != "Content-Type":  # a Response learns its own only when it is rendered
            answer[name] = value
    return answer


def _is_kept(answer: HttpResponse) -> bool:
    return answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR and answer.status_code not in NOT_AN_ANSWER


def _keep(record_id: int, answer: HttpResponse, by: Caller) -> None:
    IdempotencyRecord.objects.filter(id=record_id).update(
        status=answer.status_code,
        headers={name: answer[name] for name in KEPT_HEADERS if name in answer},
        body=answer.content,
        scopes=sorted(by.confirmed, key=str),
    )


def _replay(by: Caller, project: Project, key: str, fingerprint: bytes) -> HttpResponse:
    record = IdempotencyRecord.objects.get(project=project, key=key)
    if bytes(record.request_hash) != fingerprint:
        raise IdempotencyKeyReused
    for scope, agent_slug in record.scopes:
        if not by.may(scope, agent_slug=agent_slug):
            raise ScopeMissing(f"This needs the scope {scope}", missing_scope=scope)
    answer = HttpResponse(bytes(record.body), status=record.status, headers=record.headers)
    answer["Idempotency-Replayed"] = "true"
    return answer
