"""The page behind an answer link: who may answer what through it, for how long, and that looking changes nothing."""

import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from jobs import services
from jobs.models import Job, Question
from jobs.notifying import links
from tests.dashboard import asking, sole_question
from tests.factories import KeyInHand, make_key
from tests.jobs import make_caller

pytestmark = pytest.mark.django_db(transaction=True)

APPROVAL = {
    "kind": "approval",
    "prompt": "May I?",
    "schema": {},
    "details": {
        "action": "send_mail",
        "arguments": {"to": "a@b.org"},
        "allowed": ["approve", "edit", "reject"],
        "risk": "high",
    },
}


@pytest.fixture(autouse=True)
def _nobody_counted() -> None:
    cache.clear()


def link_to(
    question: Question, *, holder: str = "ann@example.org", seconds: float = 3600, **more: Any
) -> str:
    expires_at = timezone.now() + timedelta(seconds=seconds)
    return f"/answer/{links.token(links.AnswerLink(question.id, holder, expires_at, **more))}"


def key_for(job: Job, *scopes: str) -> KeyInHand:
    return make_key(*scopes, project=job.project)


def posted(page: str, **values: Any) -> dict[str, Any]:
    """A form's values under the names that the page gives its fields."""
    names = re.findall(r'name="([^"]+)"', page)
    return {
        next(n for n in names if n == name or n.endswith(f"-{name}")): value for name, value in values.items()
    }


def test_get_shows_the_question_and_post_answers_it() -> None:
    job = asking(None, {"prompt": "Which **tone**?"})
    url = link_to(sole_question(job))
    client = Client(enforce_csrf_checks=True)

    shown = client.get(url)
    for _ in range(3):
        client.get(url)
        client.head(url)
    before = Job.objects.get(id=job.id).status
    done = client.post(url, posted(shown.content.decode(), answer="warm"))

    assert (shown.status_code, done.status_code) == (200, 200)
    assert "<strong>tone</strong>" in shown.content.decode()
    assert before == "waiting_for_input"
    stored = Question.objects.get()
    assert (stored.answer, stored.answered_by, stored.answered_via) == (
        "warm",
        "link:ann@example.org",
        "link",
    )
    assert Job.objects.get(id=job.id).status == "queued"


def test_a_program_may_answer_with_json() -> None:
    job = asking(None, {"schema": {"type": "string"}})
    url = link_to(sole_question(job))

    wrong = Client().post(url, json.dumps({"answer": 7}), content_type="application/json")
    misspelled = Client().post(url, json.dumps({"answers": "x"}), content_type="application/json")
    broken = Client().post(url, "{", content_type="application/json")
    right = Client().post(url, json.dumps({"answer": "yes"}), content_type="application/json")
    late = Client().post(url, json.dumps({"answer": "no"}), content_type="application/json")

    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/answer")
    assert (misspelled.status_code, broken.status_code) == (422, 400)
    assert (right.status_code, right.json()["answered_via"]) == (200, "link")
    assert late.status_code == 409
    assert late.json()["answered_by"] == "link:ann@example.org"
    assert late.json()["answered_at"] == right.json()["answered_at"]


@pytest.mark.parametrize(
    ("spec", "fields", "answer"),
    [
        (
            {"kind": "choice", "choices": ["a", "b"], "schema": {"enum": ["a", "b"]}},
            {"answer": "1"},
            "b",
        ),
        ({"kind": "confirm", "schema": {"type": "boolean"}}, {"answer": "no"}, False),
        (
            APPROVAL,
            {"answer": "reject", "message": "too soon"},
            {"decision": "reject", "message": "too soon"},
        ),
        (
            APPROVAL,
            {"answer": "approve", "arguments": '{"to": "c@d.org"}'},
            {"decision": "edit", "arguments": {"to": "c@d.org"}},
        ),
        (
            {"kind": "form", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            {"f0": "7"},
            {"n": 7},
        ),
    ],
)
def test_every_kind_is_answered_through_its_form(
    spec: dict[str, Any], fields: dict[str, str], answer: Any
) -> None:
    job = asking(None, spec)
    url = link_to(sole_question(job))
    page = Client().get(url).content.decode()

    done = Client().post(url, posted(page, **fields))

    assert done.status_code == 200, done.content
    assert Question.objects.get().answer == answer


def test_an_answer_that_does_not_fit_comes_back_with_what_is_wrong() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "required": ["n"]}
    job = asking(None, {"kind": "form", "schema": schema})
    url = link_to(sole_question(job))
    page = Client().get(url).content.decode()

    answer = Client().post(url, posted(page, f0="9"))

    assert answer.status_code == 422
    assert "5" in answer.content.decode()
    assert Question.objects.get().status == "open"


def test_a_second_answer_hears_who_was_first() -> None:
    job = asking()
    question = sole_question(job)
    services.respond(job.id, by=make_caller(job.project), answer="first")

    for answer in (Client().get(link_to(question)), Client().post(link_to(question), {"answer": "second"})):
        page = unescape(answer.content.decode())
        assert answer.status_code == 409
        assert "user:tester" in page
        assert "api key" in page
    assert Question.objects.get().answer == "first"


def test_a_link_ends_with_its_time_its_question_and_its_job() -> None:
    job = asking()
    question = sole_question(job)
    timely, late = link_to(question), link_to(question, seconds=-1)

    assert Client().get(late).status_code == 410
    assert Client().post(late, {"answer": "x"}).status_code == 410
    services.cancel(job.id, by=make_caller(job.project))
    assert Client().get(timely).status_code == 410
    assert Client().post(timely, {"answer": "x"}).status_code == 410
    assert Question.objects.get().status == "superseded"


def test_a_link_that_was_changed_is_no_link() -> None:
    job = asking()
    url = link_to(sole_question(job))
    forged = [
        url[:-1] + ("A" if url[-1] != "A" else "B"),
        "/answer/x",
        "/answer/%00",
        "/answer/a:b:c",
        url[:-9],
    ]

    for address in forged:
        answer = Client().get(address)
        assert answer.status_code == 404, address
        assert "There is no such link" in answer.content.decode()
    assert Question.objects.get().status == "open"


def test_a_link_answers_its_own_question_alone() -> None:
    job = asking(None, {"prompt": "One?"}, {"prompt": "Two?"})
    first, second = job.questions.order_by("id")

    Client().post(link_to(first), json.dumps({"answer": "1"}), content_type="application/json")

    second.refresh_from_db()
    assert (second.status, Job.objects.get(id=job.id).status) == ("open", "waiting_for_input")


def test_a_hostile_prompt_is_text() -> None:
    prompt = "<script>alert(1)</script><img src=x onerror=alert(1)> [here](javascript:alert(1)) \u202eevil"
    job = asking(None, {"prompt": prompt, "kind": "choice", "choices": ["<b>x</b>"], "schema": {}})
    answer = Client().get(link_to(sole_question(job)))

    page = answer.content.decode()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>x" not in page
    assert 'href="javascript' not in page
    assert "\u202e" not in page
    assert answer["Content-Security-Policy"].startswith("default-src 'self'")
    assert "unsafe-inline" not in answer["Content-Security-Policy"]
    assert "style=" not in page
    assert answer["Referrer-Policy"] == "no-referrer"
    assert "no-store" in answer["Cache-Control"]
    assert answer["X-Frame-Options"] == "DENY"


def test_whoever_tries_too_often_has_to_wait() -> None:
    job = asking()
    url = link_to(sole_question(job))
    client = Client()

    codes = [client.get("/answer/guess").status_code for _ in range(61)]
    tries = [client.post("/answer/guess").status_code for _ in range(21)]
    elsewhere = Client(REMOTE_ADDR="192.0.2.7").get(url)

    assert (codes[0], codes[-1]) == (404, 429)
    assert (tries[0], tries[-1]) == (404, 429)
    assert client.get(url)["Retry-After"] == "60"
    assert elsewhere.status_code == 200


# --- making links ---


def test_a_key_that_may_answer_makes_links_for_others() -> None:
    job = asking()
    question = sole_question(job)
    key = key_for(job, "jobs:respond")

    made = key.client.post(f"/api/v1/questions/{question.id}/link", {"holder": "ben", "expires_in_s": 600})
    path = "/" + made.json()["url"].split("/", 3)[3]
    Client().post(path, json.dumps({"answer": "ok"}), content_type="application/json")

    assert made.status_code == 201
    assert made["Cache-Control"] == "no-store"
    assert Question.objects.get().answered_by == "link:ben"


def test_a_link_signs_with_its_makers_name_unless_it_names_a_holder() -> None:
    job = asking()
    key = key_for(job, "jobs:respond")
    made = key.client.post(f"/api/v1/questions/{sole_question(job).id}/link").json()

    Client().post(
        "/" + made["url"].split("/", 3)[3], json.dumps({"answer": "ok"}), content_type="application/json"
    )

    assert Question.objects.get().answered_by == f"link:key:{key.key.name}"


def test_a_holders_name_is_one_line() -> None:
    job = asking()
    key = key_for(job, "jobs:respond")

    refused = key.client.post(f"/api/v1/questions/{sole_question(job).id}/link", {"holder": "ann\r\nBcc: x"})

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/holder")


@pytest.mark.parametrize("end", ["revoked_at", "disabled_at", "expires_at"])
def test_a_link_ends_with_the_key_that_made_it(end: str) -> None:
    job = asking()
    key = key_for(job, "jobs:respond")
    made = key.client.post(f"/api/v1/questions/{sole_question(job).id}/link").json()
    path = "/" + made["url"].split("/", 3)[3]
    assert Client().get(path).status_code == 200

    setattr(key.key, end, timezone.now())
    key.key.save()

    assert Client().get(path).status_code == 410
    assert Client().post(path, {"answer": "x"}).status_code == 410


def test_links_are_made_by_those_who_may_answer_and_for_open_questions() -> None:
    job = asking()
    address = f"/api/v1/questions/{sole_question(job).id}/link"
    other = make_key()

    assert key_for(job, "jobs:read", "jobs:write").client.post(address).status_code == 403
    missing = other.client.post("/api/v1/questions/01990000-0000-7000-8000-000000000000/link")
    assert other.client.post(address).json()["code"] == missing.json()["code"] == "question_not_found"
    services.respond(job.id, by=make_caller(job.project), answer="first")
    assert key_for(job, "jobs:respond").client.post(address).json()["code"] == "question_closed"


def test_a_program_reads_the_question_as_json() -> None:
    job = asking(None, {"prompt": "Which tone?", "schema": {"type": "string"}})
    url = link_to(sole_question(job))

    shown = Client().get(url, headers={"Accept": "application/json"})
    unknown = Client().get("/answer/none", headers={"Accept": "application/json"})

    assert (shown.status_code, shown["Content-Type"]) == (200, "application/json")
    assert (shown.json()["prompt"], shown.json()["status"]) == ("Which tone?", "open")
    assert (unknown.status_code, unknown["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"kind": "confirm", "schema": {"type": "boolean"}}, "Choose yes or no."),
        ({**APPROVAL, "schema": {"type": "object", "required": ["x"]}}, "press one of the buttons"),
        (
            {"kind": "multi_choice", "choices": ["a"], "schema": {"type": "array", "minItems": 1}},
            "Choose at least one.",
        ),
    ],
)
def test_a_form_in_which_nothing_was_chosen_says_what_to_do(spec: dict[str, Any], sentence: str) -> None:
    job = asking(None, spec)

    answer = Client().post(link_to(sole_question(job)), {})

    page = unescape(answer.content.decode())
    assert answer.status_code == 422
    assert sentence in page
    assert not re.search(r"is not of type|should be non-empty|is not one of|is too short", page)
