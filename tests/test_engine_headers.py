"""Headers that every answer carries."""

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from engine.middleware import RequestIdMiddleware, SecurityHeadersMiddleware, policy_for
from engine.proxies import client_address


def directives(policy: str) -> dict[str, set[str]]:
    return {name: set(values) for name, *values in (part.split() for part in policy.split(";"))}


@pytest.mark.django_db
def test_scripts_run_from_our_files_alone(client: Client):
    for address in ("/admin/login/", "/api/docs", "/api/schema", "/health/live", "/static/none", "/"):
        policy = directives(client.get(address)["Content-Security-Policy"])
        scripts = policy.get("script-src", policy["default-src"])
        assert "'unsafe-inline'" not in scripts, address
        assert ("'unsafe-eval'" in scripts) is address.startswith("/admin/"), address
        assert policy["object-src"] == policy["frame-ancestors"] == {"'none'"}, address


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/admin/login/", "/api/docs"])
def test_no_page_holds_a_script_or_names_another_host(client: Client, address):
    page = client.get(address).content.decode()

    assert "<script>" not in page
    assert 'src="http' not in page
    assert "//cdn" not in page


def test_a_policy_that_an_answer_brings_is_kept():
    def artifact(request: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"Content-Security-Policy": "sandbox"})

    answer = SecurityHeadersMiddleware(artifact)(RequestFactory().get("/api/v1/x"))

    assert answer["Content-Security-Policy"] == "sandbox"


def test_a_prefix_does_not_open_its_neighbours():
    assert "unsafe-eval" not in policy_for("/administer")
    assert "unsafe-eval" not in policy_for("/api/v1/admin/keys")


@pytest.mark.django_db
def test_no_answer_may_be_sniffed_framed_or_read_by_other_sites(client: Client):
    answer = client.get("/admin/login/")

    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Opener-Policy"] == answer["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_request_has_its_id_while_it_is_handled():
    seen = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request.request_id)  # type: ignore[attr-defined]  # set by the middleware
        return HttpResponse()

    answer = RequestIdMiddleware(view)(RequestFactory().get("/", headers={"X-Request-Id": "given-1"}))

    assert (seen, answer["X-Request-Id"]) == (["given-1"], "given-1")


@pytest.mark.parametrize(
    ("hops", "forwarded", "client"),
    [
        (0, [b"203.0.113.9"], "10.0.0.1"),
        (1, [b"203.0.113.9"], "203.0.113.9"),
        (1, [b"6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (1, [b"6.6.6.6", b"203.0.113.9"], "203.0.113.9"),
        (2, [b"6.6.6.6, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (2, [b"203.0.113.9"], "10.0.0.1"),
        (1, [b"unknown"], "10.0.0.1"),
        (1, [], "10.0.0.1"),
        (1, [b"2001:db8::7"], "2001:db8::7"),
    ],
)
def test_the_client_is_whom_the_outermost_of_our_proxies_saw(settings, hops, forwarded, client):
    settings.ENGINE_PROXY_HOPS = hops
    scope = {"client": ["10.0.0.1", 5], "headers": [(b"x-forwarded-for", value) for value in forwarded]}

    found = client_address(scope)

    assert found is not None
    assert found[0] == client
