"""What a key may do, and that nothing is open by oversight."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient
from rest_framework.views import APIView

from apikeys.callers import Caller, staff_caller
from apikeys.models import ApiKey
from apikeys.permissions import HasScope, required_scope
from apikeys.scopes import Scope, is_scope
from jobs.mcp.views import HoldsKey, McpView
from tests.factories import make_key, make_project

probe = pytest.mark.urls("tests.probe")


def caller_with(*scopes: str) -> Caller:
    return Caller(project=None, scopes=frozenset(scopes))


@probe
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("scopes", "method", "missing"),
    [
        (["jobs:read"], "get", None),
        (["jobs:read"], "post", "jobs:write"),
        (["jobs:write"], "post", None),
        (["jobs:write"], "get", "jobs:read"),
        (["jobs:write"], "head", "jobs:read"),
        (["admin"], "post", None),
        (["admin:keys"], "get", "jobs:read"),
        (["agents:some-agent:run"], "post", "jobs:write"),
    ],
)
def test_a_key_does_what_its_scopes_say_and_is_told_what_is_missing(
    scopes: list[str], method: str, missing: str | None
) -> None:
    answer = getattr(make_key(*scopes).client, method)("/api/guarded")

    assert answer.status_code == (403 if missing else 200)
    if missing and method != "head":
        assert (answer.json()["code"], answer.json()["missing_scope"]) == ("scope_missing", missing)


@probe
@pytest.mark.django_db
def test_a_view_that_names_no_scope_is_closed_even_to_admin() -> None:
    answer = make_key("admin").client.get("/api/forgotten")

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@probe
@pytest.mark.django_db
def test_a_method_that_is_not_there_is_a_405_for_a_key_and_a_401_for_nobody() -> None:
    held = make_key("jobs:read")

    assert held.client.delete("/api/guarded").status_code == 405
    assert held.client.options("/api/guarded").status_code == 405
    assert APIClient().delete("/api/guarded").status_code == 401


@probe
@pytest.mark.django_db
def test_a_key_for_one_agent_runs_that_one_alone() -> None:
    client = make_key("agents:sentiment:run").client

    assert client.post("/api/run", {"agent": "sentiment"}).json() == {"may": True}
    assert client.post("/api/run", {"agent": "other"}).json() == {"may": False}
    assert make_key("jobs:read").client.post("/api/run", {"agent": "sentiment"}).status_code == 403
    assert make_key("jobs:write").client.post("/api/run", {"agent": "other"}).json() == {"may": True}


def test_what_a_caller_may_do() -> None:
    assert caller_with("admin").may(Scope.ADMIN_WORKERS)
    assert not caller_with("admin:keys").may(Scope.ADMIN)
    assert not caller_with("jobs:write").may(Scope.JOBS_READ)
    assert not caller_with("agents:a:run").may(Scope.JOBS_READ, agent_slug="a")
    assert not caller_with().may(Scope.JOBS_READ)


def test_which_agents_a_caller_may_run() -> None:
    assert caller_with("admin").runs_only() is None
    assert caller_with("jobs:write", "agents:a:run").runs_only() is None
    assert caller_with("agents:a:run", "agents:b:run", "jobs:read").runs_only() == frozenset({"a", "b"})
    assert caller_with("jobs:read").runs_only() == frozenset()


@pytest.mark.parametrize("scope", [*Scope, "agents:a:run", "agents:a-1:run", f"agents:{'a' * 63}:run"])
def test_these_are_scopes(scope: str) -> None:
    assert is_scope(scope)


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "jobs",
        "jobs:*",
        "*",
        "ADMIN",
        "admin ",
        "admin\x00",
        "agents::run",
        "agents:*:run",
        "agents:A:run",
        "agents:a:write",
        "agents:a:run\n",
        "agents:-a:run",
        "agents:a/b:run",
        f"agents:{'a' * 64}:run",
    ],
)
def test_these_are_not(scope: str) -> None:
    assert not is_scope(scope)


def test_callers_are_named_by_their_credential() -> None:
    key = ApiKey(name="ci")

    assert Caller(None, frozenset(), key).label == "key:ci"
    assert Caller(None, frozenset(), user_name="ada", via="dashboard").label == "user:ada"
    assert Caller(None, frozenset(), via="cli").label == "cli"


@pytest.mark.django_db
def test_staff_may_do_what_django_permits_them_and_superusers_everything() -> None:
    clerk = User.objects.create_user("clerk", is_staff=True)
    clerk.user_permissions.add(Permission.objects.get(codename="change_apikey"))

    assert staff_caller(clerk).scopes == {Scope.ADMIN_KEYS}
    assert staff_caller(User.objects.create_superuser("root")).may(Scope.ADMIN)


@pytest.mark.django_db
def test_nobody_else_becomes_a_staff_caller() -> None:
    former = User(username="former", is_staff=True, is_superuser=True, is_active=False)

    for user in (AnonymousUser(), User(username="visitor"), former):
        with pytest.raises(PermissionDenied):
            staff_caller(user)


@pytest.mark.django_db
def test_the_owner_filters_keep_to_the_callers_project() -> None:
    mine, other = make_key(), make_key()

    assert set(ApiKey.objects.visible_to(mine.caller)) == {mine.key}
    assert set(ApiKey.objects.visible_to(caller_with("admin"))) == {mine.key, other.key}
    assert make_project() not in type(mine.project).objects.visible_to(mine.caller)


# --- every route there is ---

# Open on purpose, each with the reason.
PUBLIC = {
    "SpectacularAPIView": "the schema holds no data",
    "SpectacularSwaggerSplitView": "the page that shows the schema",
}


def api_views(patterns: list[URLPattern | URLResolver] | None = None) -> Iterator[type[APIView]]:
    for pattern in patterns if patterns is not None else get_resolver().url_patterns:
        if isinstance(pattern, URLResolver):
            yield from api_views(pattern.url_patterns)
        else:
            view: Any = getattr(pattern.callback, "view_class", object)
            if issubclass(view, APIView):
                yield view


def test_every_view_names_a_scope_for_each_of_its_methods() -> None:
    views = set(api_views())

    assert views
    for view in views:
        if view.__name__ in PUBLIC:
            continue
        if view is McpView:  # each of its tools names a scope: tests/test_mcp_clients.py, test_mcp_frames.py
            assert HoldsKey in view.permission_classes
            continue
        assert HasScope in view.permission_classes, f"{view.__name__} has no door"
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            if hasattr(view, method.lower()):
                scope = required_scope(view, method)
                assert scope in set(Scope), f"{view.__name__} names no scope for {method}"
