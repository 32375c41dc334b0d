"""Every address of the API, taken from the URL conf: what all have in common, and the wall between projects."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient
from rest_framework.views import APIView

from agents import services as agents
from apikeys.permissions import required_scope
from apikeys.scopes import Scope
from jobs.notifying.models import Delivery
from tests.agents import make_card
from tests.dashboard import asking, make_artifact, sole_question
from tests.factories import KeyInHand, make_key

pytestmark = pytest.mark.django_db(transaction=True)

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Route:
    """One method of one address; what stands in braces is filled in."""

    method: str
    path: str
    view: type[APIView]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)


def routes() -> Iterator[Route]:
    """All routes of REST framework's views."""
    for path, pattern in _patterns(get_resolver().url_patterns, ""):
        view = getattr(pattern.callback, "cls", None)
        if view is not None and path.startswith("api/v1/"):
            for method in METHODS:
                if hasattr(view, method):
                    yield Route(method, f"/{path}", view)


def _patterns(patterns: list[Any], before: str) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        text = str(pattern.pattern).removeprefix("^").removesuffix("$").removesuffix("\\Z")
        text = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", re.sub(r"\(\?P(<\w+>)[^()]*\)", r"\1", text))
        if isinstance(pattern, URLResolver):
            yield from _patterns(pattern.url_patterns, before + text)
        else:
            yield before + text, pattern


ROUTES = list(routes())
# Of the whole installation, not of one project: names mean the same to everybody who holds the scope.
NOBODYS = {"/api/v1/admin/queues/{name}/{action}"}
# Bodies of requests that are looked at before the object is. All others need none, or are refused after it was missed.
BODIES: dict[str, Any] = {
    "POST /api/v1/jobs/{job_id}/respond": {"answer": "x"},
    "POST /api/v1/jobs/{job_id}/fork": {"checkpoint": "a#1"},
    "POST /api/v1/questions/{question_id}/answer": {"answer": "x"},
    "PATCH /api/v1/admin/keys/{key_id}": {"name": "mine now"},
    "PATCH /api/v1/admin/projects/{slug}": {"name": "mine now"},
    "PATCH /api/v1/webhooks/{webhook_id}": {"enabled": False},
    "PATCH /api/v1/agents/{slug}": {"summary": "mine now"},
}


def test_the_walk_finds_the_routes() -> None:
    found = {str(route) for route in ROUTES}

    assert {
        "GET /api/v1/jobs/{job_id}",
        "DELETE /api/v1/admin/keys/{key_id}",
        "POST /api/v1/agents/{slug}/{action}",
        "GET /api/v1/agents/{slug}/versions/{older}/diff/{newer}",
    } <= found
    assert not [route for route in found if re.search(r"[<>()\\^$]", route)]


def test_every_method_of_every_view_asks_for_a_scope() -> None:
    for route in ROUTES:
        assert required_scope(route.view, route.method.upper()), route


def test_no_address_is_answered_without_a_key() -> None:
    for route in ROUTES:
        answer = APIClient().generic(route.method, filled(route, {}))
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated"), route


def test_a_query_parameter_that_is_not_known_is_refused_everywhere() -> None:
    client = make_key().client
    for route in ROUTES:
        answer = client.generic(route.method, filled(route, {}) + "?zz=1")
        assert answer.status_code == 400, (route, answer.content)
        assert answer.json()["code"] == "invalid_query", route
        assert answer.json()["errors"][0]["pointer"] == "?zz", route


def filled(route: Route, values: dict[str, str]) -> str:
    """The address with these values, and with those of no object for all others."""
    nobody = {
        "action": "pause",
        "number": "1",
        "older": "1",
        "newer": "1",
        "slug": "nobodys",
        "name": "nobodys",
    }
    return re.sub(
        r"{(\w+)}", lambda found: values.get(found[1]) or nobody.get(found[1]) or str(uuid4()), route.path
    )


# --- the wall ---


@dataclass(frozen=True)
class Estate:
    """One project with one of everything in it."""

    owner: KeyInHand
    ids: dict[str, str]

    def values(self, route: Route) -> dict[str, str]:
        """What fills the route's address with things of this project."""
        slug = self.ids["project"] if "/projects/" in route.path else self.ids["agent"]
        return {**self.ids, "slug": slug}

    def traces(self) -> list[str]:
        """What nobody else may get to see."""
        return [value for value in self.ids.values() if len(value) > 3]


@pytest.fixture
def theirs() -> Estate:
    owner = make_key()
    version, _ = agents.put(owner.caller, make_card("their-secret-agent", name="Their secret agent"))
    job = asking(owner.project, {"schema": {"type": "string"}})
    artifact = make_artifact(job, "their-secret.txt", b"secret", "text/plain")
    webhook = owner.client.post("/api/v1/webhooks", {"url": "https://example.com/their-secret"}).json()
    owner.client.post(f"/api/v1/webhooks/{webhook['id']}/ping")
    return Estate(
        owner,
        {
            "job_id": str(job.id),
            "artifact_id": str(artifact.id),
            "question_id": str(sole_question(job).id),
            "key_id": str(owner.key.id),
            "project": owner.project.slug,
            "agent": version.agent.slug,
            "webhook_id": webhook["id"],
            "delivery_id": str(Delivery.objects.get(project=owner.project).id),
            "number": "1",
            "older": "1",
            "newer": "1",
        },
    )


def stranger() -> KeyInHand:
    """A key with every right inside a project of its own."""
    return make_key(*(scope for scope in Scope if scope != Scope.ADMIN))


def test_another_projects_object_is_byte_for_byte_one_that_does_not_exist(theirs: Estate) -> None:
    client = stranger().client
    named = [route for route in ROUTES if route.parameters and route.path not in NOBODYS]

    for route in named:
        answers = []
        nobody = {name: str(uuid4()) if is_uuid(value) else "nobodys" for name, value in theirs.ids.items()}
        none = Estate(theirs.owner, nobody | {"number": "1", "older": "1", "newer": "1"})
        for estate in (theirs, none):
            path = filled(route, estate.values(route))
            body = json.dumps(BODIES[str(route)]) if str(route) in BODIES else ""
            answer = client.generic(
                route.method, path, body, content_type="application/json", headers={"X-Request-Id": "same"}
            )
            content = answer.content.decode()
            for value in estate.traces():
                content = content.replace(value, "ID")
            answers.append((answer.status_code, content, sorted(answer.headers)))
        assert answers[0][0] == 404, (route, answers[0])
        assert answers[0] == answers[1], route


def test_their_owner_is_not_answered_so(theirs: Estate) -> None:
    """The walk above would pass if it asked for nothing that exists."""
    client = theirs.owner.client
    for route in ROUTES:
        if route.method == "get" and route.parameters and route.path not in NOBODYS:
            answer = client.get(filled(route, theirs.values(route)))
            assert answer.status_code == 200, (route, answer.content)
            answer.close()


def test_no_list_shows_what_belongs_to_another_project(theirs: Estate) -> None:
    client = stranger().client
    seen = theirs.owner.client

    for route in ROUTES:
        if route.method != "get" or route.parameters:
            continue
        content = client.get(route.path).content.decode()
        assert not [value for value in theirs.traces() if value in content], route
    lists = "".join(seen.get(route.path).content.decode() for route in ROUTES if not route.parameters)
    assert [value for value in theirs.traces() if value in lists]


def test_what_is_named_in_a_body_is_behind_the_wall_too(theirs: Estate) -> None:
    client = stranger().client
    ids = theirs.ids
    asked = [
        ("/api/v1/stream-tickets", {"job_id": ids["job_id"]}, {"job_id": str(uuid4())}),
        ("/api/v1/jobs", {"task": "x", "agent": ids["agent"]}, {"task": "x", "agent": "nobodys"}),
        ("/api/v1/jobs", {"task": "x", "agent": f"{ids['agent']}@1"}, {"task": "x", "agent": "nobodys@1"}),
    ]

    for path, existing, missing in asked:
        answers = []
        for body in (existing, missing):
            answer = client.post(path, body, headers={"X-Request-Id": "same"})
            content = answer.content.decode()
            for value in itertools.chain(body.values(), [str(body.get("agent", "")).partition("@")[0]]):
                content = content.replace(value, "ID") if value and value != "x" else content
            answers.append((answer.status_code, content))
        assert answers[0] == answers[1], path
        assert answers[0][0] in (404, 422), answers[0]


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
