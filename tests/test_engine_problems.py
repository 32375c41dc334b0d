"""Every refusal is a problem document, whoever made it."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock

import psycopg
import pytest
from django.core import exceptions as django_errors
from django.core.handlers.wsgi import WSGIRequest
from django.db import DataError, IntegrityError, InterfaceError, InternalError, OperationalError
from django.http import Http404, UnreadablePostError
from django.test import Client
from rest_framework import exceptions as drf_errors

from engine.bridge import MOST_WAITING, Bridge, environ_for
from engine.error_table import error_classes, render
from engine.errors import Conflict
from tests.probe import Behaviour

pytestmark = pytest.mark.urls("tests.probe")


@pytest.fixture
def web() -> Iterator[Client]:
    yield Client(raise_request_exception=False)
    Behaviour.reset()


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


RAISED: list[tuple[Callable[[], BaseException], int, str]] = [
    (lambda: Conflict("Not now", job_id="7"), 409, "conflict"),
    (drf_errors.ParseError, 400, "bad_request"),
    (drf_errors.NotAuthenticated, 401, "not_authenticated"),
    (drf_errors.AuthenticationFailed, 401, "not_authenticated"),
    (drf_errors.PermissionDenied, 403, "forbidden"),
    (drf_errors.NotFound, 404, "not_found"),
    (lambda: drf_errors.MethodNotAllowed("GET"), 405, "method_not_allowed"),
    (drf_errors.NotAcceptable, 406, "not_acceptable"),
    (lambda: drf_errors.UnsupportedMediaType("x/y"), 415, "unsupported_media_type"),
    (lambda: drf_errors.ValidationError({"a": ["b"]}), 422, "validation_failed"),
    (lambda: drf_errors.Throttled(wait=1.2), 429, "too_many_requests"),
    (drf_errors.APIException, 500, "internal_error"),
    (Http404, 404, "not_found"),
    (django_errors.PermissionDenied, 403, "forbidden"),
    (django_errors.RequestDataTooBig, 413, "body_too_large"),
    (django_errors.TooManyFieldsSent, 400, "bad_request"),
    (django_errors.SuspiciousOperation, 400, "bad_request"),
    (django_errors.DisallowedHost, 400, "bad_request"),
    (UnreadablePostError, 400, "bad_request"),
    (OperationalError, 503, "unavailable"),
    (InterfaceError, 503, "unavailable"),
    (lambda: caused_by(InternalError(), psycopg.errors.ReadOnlySqlTransaction()), 503, "unavailable"),
    (DataError, 400, "unacceptable_value"),
    (IntegrityError, 500, "internal_error"),
    (InternalError, 500, "internal_error"),
    (RecursionError, 500, "internal_error"),
    (ZeroDivisionError, 500, "internal_error"),
]


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@pytest.mark.parametrize("path", ["/api/raise", "/api/plain"], ids=["rest framework", "plain view"])
@pytest.mark.parametrize(("raises", "status", "code"), RAISED)
def test_whatever_a_view_raises_is_answered_as_a_problem(
    web: Client,
    settings: Any,
    debug: bool,
    path: str,
    raises: Callable[[], BaseException],
    status: int,
    code: str,
) -> None:
    settings.DEBUG = debug
    Behaviour.raises = raises

    answer = web.get(path)

    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:engine:problem:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer["X-Request-Id"]


def test_a_problem_carries_the_errors_public_fields_and_headers(web: Client) -> None:
    Behaviour.raises = lambda: Conflict("Not now", job_id="7", headers={"Retry-After": "3"})

    answer = web.get("/api/raise")

    assert (answer.json()["detail"], answer.json()["job_id"]) == ("Not now", "7")
    assert answer["Retry-After"] == "3"


@pytest.mark.parametrize(
    ("raises", "seconds"), [(OperationalError, "2"), (lambda: drf_errors.Throttled(1.2), "2")]
)
def test_what_passes_says_when_to_come_back(web: Client, raises: Any, seconds: str) -> None:
    Behaviour.raises = raises

    assert web.get("/api/raise")["Retry-After"] == seconds


def test_a_fault_of_ours_tells_nothing_about_itself(web: Client, caplog: pytest.LogCaptureFixture) -> None:
    Behaviour.raises = lambda: ValueError("the password is 1234")

    answer = web.get("/api/raise")

    assert b"1234" not in answer.content
    assert "the password is 1234" in caplog.text


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/nothing", 404, "not_found"),
        ("POST", "/api/nothing", 404, "not_found"),
        ("GET", "/api/raise/", 404, "not_found"),
        ("GET", "/api/%00", 404, "not_found"),
        ("GET", "/api/%FF%C0", 404, "not_found"),
        ("GET", "/api/" + "x" * 5000, 404, "not_found"),
        ("PUT", "/api/echo", 405, "method_not_allowed"),
        ("OPTIONS", "/api/echo", 405, "method_not_allowed"),
        ("BREW", "/api/echo", 405, "method_not_allowed"),
        ("PUT", "/api/get-only", 405, "method_not_allowed"),
    ],
)
def test_unknown_addresses_and_methods_are_problems_too(
    web: Client, settings: Any, debug: bool, method: str, path: str, status: int, code: str
) -> None:
    settings.DEBUG = debug

    answer = web.generic(method, path)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer["Content-Type"] == "application/problem+json"


def test_405_lists_the_methods_and_no_fields(web: Client) -> None:
    answer = web.options("/api/form")

    assert answer["Allow"] == "POST, OPTIONS"
    assert b"max_length" not in answer.content


def test_a_plain_views_405_keeps_its_allow_header(web: Client) -> None:
    answer = web.generic("OPTIONS", "/api/get-only")

    assert (answer.status_code, answer.json()["code"], answer["Allow"]) == (405, "method_not_allowed", "GET")


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "x", "text/html;q=0.9", "\x00"])
def test_only_json_is_sent(web: Client, accept: str) -> None:
    answer = web.post("/api/echo", {}, content_type="application/json", headers={"accept": accept})

    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")


def test_the_address_of_all_addresses_is_one_of_ours_too(web: Client) -> None:
    answer = web.get("/api")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_server_that_is_too_busy_says_so_in_the_same_words() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    bridge = Bridge(lambda environ, start: [], threads=1)
    bridge.waiting = MOST_WAITING
    asyncio.run(bridge({"type": "http", "request_id": "r-1"}, AsyncMock(), send))

    headers = {name.lower(): value for name, value in sent[0]["headers"]}
    document = json.loads(sent[1]["body"])
    assert (sent[0]["status"], headers[b"retry-after"]) == (503, b"2")
    assert headers[b"content-type"] == b"application/problem+json"
    assert (document["code"], document["request_id"]) == ("unavailable", "r-1")


@pytest.mark.parametrize(
    "content_type", ["a/b; c*=nope''x", "a/b; c*=idna''%ff", "application/json; charset*=nope''x"]
)
def test_a_content_type_that_django_cannot_read_is_not_taken_and_no_fault(content_type: str) -> None:
    scope = {"type": "http", "method": "POST", "http_version": "1.1", "path": "/", "raw_path": b"/"}
    headers = [(b"content-type", content_type.encode())]

    environ = environ_for({**scope, "headers": headers}, io.BytesIO())

    assert WSGIRequest(environ).content_type == "application/octet-stream"


def test_a_format_cannot_be_chosen_in_the_address(web: Client) -> None:
    answer = web.post("/api/echo?format=html", {}, content_type="application/json")

    assert answer["Content-Type"] == "application/json"


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
def test_a_foreign_host_gets_no_page(web: Client, settings: Any, debug: bool) -> None:
    settings.DEBUG = debug

    answer = web.get("/api/plain", headers={"host": "evil.example"})

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_page_outside_the_api_says_503_while_the_database_is_away(web: Client) -> None:
    Behaviour.raises = OperationalError

    answer = web.get("/page")

    assert (answer.status_code, answer["Retry-After"]) == (503, "2")
    assert answer["Content-Type"].startswith("text/html")


def test_pages_outside_the_api_stay_pages(web: Client) -> None:
    Behaviour.raises = Http404

    assert web.get("/page")["Content-Type"].startswith("text/html")


def test_hostile_text_in_an_error_can_be_sent(web: Client) -> None:
    answer = web.post(
        "/api/form", json.dumps({"\x1b[31m<b>": 1, "n\u202e": 2}), content_type="application/json"
    )

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] in ("/name", "/\x1b[31m<b>")


# --- the table in the docs ---


def test_the_table_of_errors_is_current(settings: Any) -> None:
    written = (settings.BASE_DIR / "docs" / "errors.md").read_text(encoding="utf-8")

    assert written == render(), "docs/errors.md is out of date: run `python manage.py error_table`"


def test_every_code_means_one_thing() -> None:
    kinds = sorted(error_classes(), key=lambda kind: kind.code)
    codes = [kind.code for kind in kinds]

    assert len(codes) == len(set(codes)), f"a code is used twice in {kinds}"
    assert all(kind.__doc__ for kind in kinds)
