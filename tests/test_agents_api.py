"""The registry and discovery over HTTP: scopes, owners, pages, faults with pointers."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from agents import services
from agents.models import Calibration
from apikeys.scopes import Scope
from tests.agents import make_card, make_noop, register_all, staff, words
from tests.factories import KeyInHand, make_key

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]

AGENTS = "/api/v1/agents"


@pytest.fixture
def key() -> KeyInHand:
    return make_key(Scope.AGENTS_READ, Scope.AGENTS_WRITE)


@pytest.fixture
def client(key: KeyInHand) -> APIClient:
    return key.client


def register(client: APIClient, slug: str = "echo", **fields: Any) -> dict[str, Any]:
    """The body of a registration that must succeed."""
    answer = client.post(AGENTS, make_card(slug, **fields))
    assert answer.status_code in (200, 201), answer.content
    return dict(answer.json())


def pointers(answer: Any) -> list[str]:
    return [fault["pointer"] for fault in answer.json()["errors"]]


def test_registering_answers_201_with_the_agents_address(client: APIClient) -> None:
    answer = client.post(AGENTS, make_card(examples=["Echo this"]))

    assert (answer.status_code, answer.headers["Location"]) == (201, f"{AGENTS}/echo")
    body = client.get(answer.headers["Location"]).json()
    assert body == answer.json()
    assert (body["slug"], body["version"], body["kind"], body["shared"]) == ("echo", 1, "python", False)
    assert body["health"] == {"status": "ok"}
    assert body["success_rate"] is body["typical_duration_s"] is None
    assert "agent.py" in body["source"]


def test_a_known_slug_makes_a_version_and_equal_content_answers_200(client: APIClient) -> None:
    register(client)

    changed = client.post(AGENTS, make_card(description="New"))
    unchanged = client.post(AGENTS, make_card(description="New"))

    assert (changed.status_code, changed.json()["version"]) == (201, 2)
    assert (unchanged.status_code, unchanged.json()["version"]) == (200, 2)


def test_faults_in_a_card_are_named_with_pointers(client: APIClient) -> None:
    answer = client.post(AGENTS, make_card("Bad Slug", limits={"memory_mb": 1}, requirements=["-e ."]))

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_card")
    assert sorted(pointers(answer)) == ["/limits/memory_mb", "/requirements/0", "/slug"]


@pytest.mark.parametrize("body", ["[]", '"card"', "null", "3"])
def test_what_is_no_object_is_no_card(client: APIClient, body: str) -> None:
    answer = client.generic("POST", AGENTS, body, content_type="application/json")

    assert answer.status_code == 422


def test_lists_come_in_pages_without_source(client: APIClient) -> None:
    for number in range(5):
        register(client, f"agent-{number}")

    first = client.get(AGENTS, {"limit": 3}).json()
    second = client.get(AGENTS, {"limit": 3, "cursor": first["next_cursor"]}).json()

    slugs = [agent["slug"] for page in (first, second) for agent in page["items"]]
    assert slugs == [f"agent-{number}" for number in (4, 3, 2, 1, 0)]
    assert second["next_cursor"] is None
    assert not {"source", "instructions"} & first["items"][0].keys()


def test_lists_can_be_narrowed(client: APIClient) -> None:
    register(client, "red", tags=["warm"])
    register(client, "blue", tags=["cold"])
    client.delete(f"{AGENTS}/blue")

    def slugs(**params: str) -> list[str]:
        return sorted(agent["slug"] for agent in client.get(AGENTS, params).json()["items"])

    assert slugs() == ["red"]
    assert slugs(status="archived") == ["blue"]
    assert slugs(status="all") == ["blue", "red"]
    assert slugs(status="all", tag="cold") == ["blue"]
    assert slugs(q="RE") == ["red"]
    assert slugs(kind="llm") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1000000", "status=deleted", "nonsense=1", "cursor=abc", "q=%00"]
)
def test_a_query_that_is_not_understood_is_refused(client: APIClient, query: str) -> None:
    assert client.get(f"{AGENTS}?{query}").status_code == 400


def test_a_patch_makes_a_version_and_a_delete_archives(client: APIClient) -> None:
    register(client)

    patched = client.patch(f"{AGENTS}/echo", {"description": "Patched"})
    again = client.patch(f"{AGENTS}/echo", {"description": "Patched"})
    deleted = client.delete(f"{AGENTS}/echo")
    refused = client.post(AGENTS, make_card(description="More"))
    restored = client.post(f"{AGENTS}/echo/restore")

    assert (patched.status_code, patched.json()["version"], again.status_code) == (201, 2, 200)
    assert (deleted.status_code, deleted.json()["status"]) == (200, "archived")
    assert (refused.status_code, refused.json()["code"]) == (409, "agent_archived")
    assert (restored.status_code, restored.json()["status"]) == (200, "active")


@pytest.mark.parametrize("body", ["[]", '"x"', "null"])
def test_a_patch_that_is_no_object_is_refused(client: APIClient, body: str) -> None:
    register(client)

    answer = client.generic("PATCH", f"{AGENTS}/echo", body, content_type="application/json")

    assert answer.status_code == 422


def test_versions_can_be_listed_read_and_compared(client: APIClient) -> None:
    register(client, description="One")
    register(client, description="Two")

    versions = client.get(f"{AGENTS}/echo/versions").json()["items"]
    first = client.get(f"{AGENTS}/echo/versions/1").json()
    changes = client.get(f"{AGENTS}/echo/versions/1/diff/2").json()

    assert [version["version"] for version in versions] == [2, 1]
    assert first["description"] == "One"
    assert changes["fields_changed"] == [{"field": "description", "before": "One", "after": "Two"}]


ADDRESSES = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/restore"),
    ("GET", "/versions"),
    ("GET", "/versions/1"),
    ("GET", "/versions/1/diff/1"),
]


@pytest.mark.parametrize(("method", "rest"), ADDRESSES)
def test_another_projects_agent_is_a_404_at_every_address(key: KeyInHand, method: str, rest: str) -> None:
    services.register(key.caller, make_card("secret"))
    stranger = make_key(Scope.AGENTS_READ, Scope.AGENTS_WRITE).client

    theirs = stranger.generic(method, f"{AGENTS}/secret{rest}", "{}", content_type="application/json")
    missing = stranger.generic(method, f"{AGENTS}/absent{rest}", "{}", content_type="application/json")

    assert (theirs.status_code, missing.status_code) == (404, 404)
    assert theirs.json()["code"] == missing.json()["code"] == "agent_not_found"
    assert theirs.json()["detail"].replace("secret", "absent") == missing.json()["detail"]


@pytest.mark.parametrize(("method", "rest"), [*ADDRESSES, ("POST", "")])
def test_reading_and_writing_need_their_scopes(method: str, rest: str) -> None:
    reader, writer = make_key(Scope.AGENTS_READ).client, make_key(Scope.AGENTS_WRITE).client
    address = f"{AGENTS}/echo{rest}" if (method, rest) != ("POST", "") else AGENTS
    allowed, refused = (reader, writer) if method == "GET" else (writer, reader)

    assert refused.generic(method, address, "{}", content_type="application/json").status_code == 403
    assert allowed.generic(method, address, "{}", content_type="application/json").status_code != 403


def test_discovery_needs_the_right_to_read_agents() -> None:
    task = {"task": "Echo this"}

    assert make_key(Scope.AGENTS_WRITE).client.post(f"{AGENTS}/discover", task).status_code == 403
    assert make_key(Scope.AGENTS_READ).client.post(f"{AGENTS}/discover", task).status_code == 200
    assert APIClient().post(f"{AGENTS}/discover", task).status_code == 401


def test_a_key_may_not_change_a_shared_agent(client: APIClient) -> None:
    services.register(staff(), make_card("common"))

    answers = [client.patch(f"{AGENTS}/common", {"name": "Mine"}), client.delete(f"{AGENTS}/common")]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (403, "agent_is_shared")
    ] * 2
    assert client.get(f"{AGENTS}/common").json()["shared"] is True


def test_discovery_over_http_says_what_the_service_says(key: KeyInHand) -> None:
    zebras = make_noop("zebras", "Counts zebras in photographs", tags=["zoo"])
    register_all(key.caller, [zebras, make_noop("meals", "Plans vegetarian meals")])

    answer = key.client.post(
        f"{AGENTS}/discover",
        {"task": "Count the zebras in these photographs", "limit": 1, "filters": {"tags": ["zoo"]}},
    )

    assert answer.status_code == 200
    body = answer.json()
    assert body["decision"] == "match"
    assert [result["agent"] for result in body["results"]] == ["zebras"]
    assert body["results"][0]["matched"]["terms"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/task"),
        ({"task": ""}, "/task"),
        ({"task": "  \n"}, "/task"),
        ({"task": None}, "/task"),
        ({"task": ["a"]}, "/task"),
        ({"task": "x" * 100_001}, "/task"),
        ({"task": "a", "limit": 0}, "/limit"),
        ({"task": "a", "limit": 51}, "/limit"),
        ({"task": "a", "limit": "many"}, "/limit"),
        ({"task": "a", "filters": {"tag": "x"}}, "/filters/tag"),
        ({"task": "a", "filters": {"kinds": ["robot"]}}, "/filters/kinds/0"),
        ({"task": "a", "owner": "me"}, "/owner"),
    ],
)
def test_a_bad_question_is_refused_with_a_pointer(
    client: APIClient, body: dict[str, Any], pointer: str
) -> None:
    answer = client.post(f"{AGENTS}/discover", body)

    assert answer.status_code == 422
    assert pointers(answer) == [pointer]


@pytest.mark.parametrize("text", [r"a\u0000b", r"a\ud800b"])
def test_text_that_cannot_be_stored_is_refused_at_the_gate(client: APIClient, text: str) -> None:
    answer = client.generic(
        "POST", f"{AGENTS}/discover", f'{{"task": "{text}"}}', content_type="application/json"
    )

    assert 400 <= answer.status_code < 500
    assert pointers(answer) == ["/task"]


@pytest.mark.parametrize(
    "task", ["\u0007\x1b[2J", "翻訳してください", "🦓" * 1000, "x" * 100_000, "?!…", "\u202egnirts"]
)
def test_odd_but_legal_tasks_have_an_answer(key: KeyInHand, task: str) -> None:
    register_all(key.caller, [make_noop("zebras", "Counts zebras in photographs")])

    answer = key.client.post(f"{AGENTS}/discover", {"task": task})

    assert answer.status_code == 200
    assert answer.json()["decision"] in ("match", "weak_match", "none")


def test_a_megabyte_is_refused_before_anything_is_embedded(client: APIClient, words: Any) -> None:
    asked = len(words.asked)

    assert client.post(f"{AGENTS}/discover", {"task": "x" * 1_000_000}).status_code == 422
    assert len(words.asked) == asked


def test_discover_is_no_slug(client: APIClient) -> None:
    assert client.get(f"{AGENTS}/discover").status_code == 405


@pytest.mark.parametrize("rest", ["", "/versions/1"])
def test_an_agent_that_has_not_changed_is_a_304(client: APIClient, rest: str) -> None:
    register(client)
    first = client.get(f"{AGENTS}/echo{rest}")
    same = client.get(f"{AGENTS}/echo{rest}", headers={"If-None-Match": first["ETag"]})
    client.patch(f"{AGENTS}/echo", {"description": "Another"})
    after = client.get(f"{AGENTS}/echo", headers={"If-None-Match": first["ETag"]})

    assert (first.status_code, same.status_code, same.content) == (200, 304, b"")
    assert same["ETag"] == first["ETag"]
    assert after.status_code == 200


def test_an_agent_registered_again_with_its_idempotency_key_answers_as_at_first(client: APIClient) -> None:
    first = client.post(AGENTS, make_card(), headers={"Idempotency-Key": "once"})
    again = client.post(AGENTS, make_card(), headers={"Idempotency-Key": "once"})
    other = client.post(AGENTS, make_card(description="Else"), headers={"Idempotency-Key": "once"})

    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert again["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"name": "two\nlines"}, "/name"),
        ({"tags": ["a\x1b[31m"]}, "/tags/0"),
        ({"kind": "llm", "source": {}, "instructions": "x", "model": "gpt\n5"}, "/model"),
        ({"skills": [{"name": "a\u2028b"}]}, "/skills/0/name"),
    ],
)
def test_what_is_shown_on_one_line_holds_no_break(
    client: APIClient, fields: dict[str, Any], pointer: str
) -> None:
    answer = client.post(AGENTS, make_card(**fields))

    assert (answer.status_code, pointers(answer)) == (422, [pointer])


def test_many_cards_go_in_and_out_in_one_shape(client: APIClient) -> None:
    cards = [make_card(f"many-{number}", description=f"Does thing {number}") for number in range(30)]

    answer = client.post(f"{AGENTS}/bulk", {"agents": cards})
    again = client.post(f"{AGENTS}/bulk", {"agents": client.get(f"{AGENTS}/bulk").json()["agents"]})

    assert answer.status_code == 200, answer.content
    assert answer.json()["items"] == [{"agent": card["slug"], "version": 1} for card in cards]
    assert sorted(map(str, again.json()["items"])) == sorted(map(str, answer.json()["items"]))


def test_discovery_is_calibrated_when_a_bulk_registration_answers(key: KeyInHand) -> None:
    cards = [make_card(f"many-{number}", description=f"Does thing {number}") for number in range(30)]

    key.client.post(f"{AGENTS}/bulk", {"agents": cards})

    assert Calibration.objects.get().agents == 30


def test_one_bad_card_in_bulk_is_named_and_registers_none(client: APIClient) -> None:
    answer = client.post(f"{AGENTS}/bulk", {"agents": [make_card("good"), make_card("bad", name="")]})

    assert answer.status_code == 422
    assert pointers(answer) == ["/agents/1/name"]
    assert client.get(f"{AGENTS}/good").status_code == 404


@pytest.mark.parametrize(
    "body", [{}, {"agents": []}, {"agents": "x"}, {"agents": [3]}, {"agents": [{}], "b": 1}]
)
def test_bulk_without_cards_is_refused(client: APIClient, body: Any) -> None:
    assert client.post(f"{AGENTS}/bulk", body).status_code == 422


@pytest.mark.parametrize("slug", ["bulk", "discover"])
def test_no_agent_takes_the_name_of_an_address(client: APIClient, slug: str) -> None:
    assert pointers(client.post(AGENTS, make_card(slug))) == ["/slug"]
