"""What may follow the question mark, and the pages of a list."""

from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from apikeys.models import Project
from engine.pages import MAX_LIMIT
from tests.factories import make_project

pytestmark = pytest.mark.urls("tests.probe")


@pytest.fixture
def web() -> Client:
    return Client(raise_request_exception=False)


def test_parameters_come_converted(web: Client) -> None:
    answer = web.get(
        "/api/query?status=queued,running&status=queued&order=-created_at&limit=7&q=a+b&deep=true"
        "&after=2027-01-31T09:00:00+01:00"
    )

    assert answer.json() == {
        "status": ["queued", "running", "queued"],
        "order": "-created_at",
        "limit": 7,
        "q": "a b",
        "deep": True,
        "after": "2027-01-31T09:00:00+01:00",
    }


HOSTILE = [
    "nope=1",
    "status__in=queued",
    "_connector=OR",
    "password=x",
    "status=done",
    "status=",
    "status=queued,",
    "order=id",
    "order=-created_at&order=created_at",
    "limit=0",
    "limit=201",
    "limit=-1",
    "limit=1.5",
    "limit=x",
    "limit=",
    "limit=" + "9" * 5000,
    "limit=%D9%A3",  # a digit, but not of ours
    "limit=1e2",
    "q=%00",
    "q=" + "x" * 21,
    "after=yesterday",
    "after=2027-02-30T00:00:00Z",
    "after=2027-01-31T09:00:00",
    "after=" + "9" * 4000,
    "after=99999-01-01T00:00:00Z",
    "id=1",
    "id=%00",
    "id=" + "a" * 3000,
    "deep=yes",
    "deep=1",
    "%00=1",
    "%FF=1",
]


@pytest.mark.parametrize("query", HOSTILE, ids=[query[:30] for query in HOSTILE])
def test_a_parameter_that_is_unknown_or_wrong_is_named(web: Client, query: str) -> None:
    answer = web.get(f"/api/query?{query}")

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    assert answer.json()["errors"][0]["pointer"].startswith("?")


def test_a_thousand_parameters_are_a_bad_request(web: Client) -> None:
    answer = web.get("/api/query?" + "&".join(f"a{n}=1" for n in range(1001)))

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.django_db
def test_pages_lead_through_all_rows_newest_first_each_once(web: Client) -> None:
    slugs = [make_project().slug for _ in range(7)]

    seen: list[str] = []
    query = "?limit=3"
    while query:
        page = web.get(f"/api/pages{query}").json()
        seen += page["items"]
        query = page["next_cursor"] and f"?limit=3&cursor={page['next_cursor']}"

    assert seen == slugs[::-1]


@pytest.mark.django_db
def test_a_row_that_comes_meanwhile_shifts_nothing(web: Client) -> None:
    old, new = make_project(), make_project()
    cursor = web.get("/api/pages?limit=1").json()["next_cursor"]
    make_project()

    assert web.get(f"/api/pages?cursor={cursor}").json() == {"items": [old.slug], "next_cursor": None}
    assert new.slug not in web.get(f"/api/pages?cursor={cursor}").json()["items"]


@pytest.mark.django_db
def test_a_page_has_50_rows_unless_told_and_never_more_than_200(web: Client) -> None:
    Project.objects.bulk_create([Project(slug=f"p{n}", name="x") for n in range(MAX_LIMIT + 1)])

    assert len(web.get("/api/pages").json()["items"]) == 50
    assert len(web.get(f"/api/pages?limit={MAX_LIMIT}").json()["items"]) == MAX_LIMIT
    assert web.get(f"/api/pages?limit={MAX_LIMIT + 1}").json()["code"] == "invalid_query"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "cursor", ["x", "%00", "====", "AAAA", "a" * 201, str(UUID(int=7)), "%F0%9F%98%80", "-1", ""]
)
def test_a_cursor_that_no_list_gave_out_is_refused(web: Client, cursor: str) -> None:
    answer = web.get(f"/api/pages?cursor={cursor}")

    assert answer.status_code == 400
    assert answer.json()["code"] in ("invalid_cursor", "invalid_query")


@pytest.mark.django_db
def test_a_cursor_with_one_character_changed_is_refused(web: Client) -> None:
    make_project(), make_project()
    cursor: Any = web.get("/api/pages?limit=1").json()["next_cursor"]

    for place in range(len(cursor)):
        other = "A" if cursor[place] != "A" else "B"
        answer = web.get(f"/api/pages?cursor={cursor[:place]}{other}{cursor[place + 1 :]}")
        assert answer.json()["code"] == "invalid_cursor"
