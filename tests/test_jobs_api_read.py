"""Reading jobs: one, lists, logs, questions; and the walls between projects."""

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

from apikeys.models import Project
from jobs import queries, services
from jobs.models import Job, Question, Worker
from tests.factories import KeyInHand, make_key
from tests.jobs import (
    ask,
    claim_one,
    log_line,
    make_caller,
    make_job,
    make_version,
    make_worker,
    question,
    settlement,
    write,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def key() -> KeyInHand:
    return make_key("jobs:read", "jobs:write", "jobs:respond")


@pytest.fixture
def client(key: KeyInHand) -> APIClient:
    return key.client


@pytest.fixture
def project(key: KeyInHand) -> Project:
    return key.project


def run_to_the_end(project: Project, *messages: str, result: Any = None) -> Job:
    """A job that a worker has taken, logged for and completed."""
    job, worker = make_job(project), make_worker()
    claimed = claim_one(worker)
    events = [log_line(claimed, offset, message) for offset, message in enumerate(messages, 1)]
    end = settlement(claimed, offset=len(events) + 1, result=json.dumps(result))
    write(worker, events=events, settlements=[end])
    job.refresh_from_db()
    return job


# --- one job ---


def test_a_job_shows_its_state_its_attempts_and_its_result(client: APIClient, project: Project) -> None:
    job = run_to_the_end(project, "working", result={"rows": 3})

    body = client.get(f"/api/v1/jobs/{job.id}").json()

    assert (body["status"], body["result"], body["error"]) == ("completed", {"rows": 3}, None)
    assert body["progress"] == {"fraction": 1.0, "message": ""}
    (attempt,) = body["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["error"]) == (1, "completed", None)
    assert attempt["ended_at"] is not None
    assert body["usage"]["attempts"] == 1
    assert body["links"]["logs"] == f"/api/v1/jobs/{job.id}/logs"


def test_a_running_job_shows_the_attempt_that_has_no_row_yet(client: APIClient, project: Project) -> None:
    job, worker = make_job(project), make_worker()
    claim_one(worker)

    (attempt,) = client.get(f"/api/v1/jobs/{job.id}").json()["attempts"]

    assert (attempt["number"], attempt["worker"], attempt["outcome"]) == (1, str(worker), "running")
    assert attempt["ended_at"] is None


def test_an_unchanged_job_is_a_304_and_a_changed_one_is_not(client: APIClient, project: Project) -> None:
    job = make_job(project)
    url = f"/api/v1/jobs/{job.id}"
    etag = client.get(url)["ETag"]

    unchanged = client.get(url, headers={"If-None-Match": etag})
    services.cancel(job.id, by=make_caller(project))
    changed = client.get(url, headers={"If-None-Match": etag})

    assert (unchanged.status_code, unchanged.content, unchanged["ETag"]) == (304, b"", etag)
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")
    assert changed["ETag"] != etag


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("{}", 304), ("W/{}", 304), ('"a", {}', 304), ('"a",W/{} , "b"', 304), ("*", 304),
        ('"a"', 200), ("a", 200), ('"a', 200), ("", 200), (",,,", 200), ("W/", 200),
    ],
)  # fmt: skip
def test_what_a_client_holds_may_be_told_in_any_way(
    client: APIClient, project: Project, given: str, status: int
) -> None:
    url = f"/api/v1/jobs/{make_job(project).id}"

    answer = client.get(url, headers={"If-None-Match": given.format(client.get(url)["ETag"])})

    assert answer.status_code == status


def test_a_state_that_is_gone_is_a_412(client: APIClient, project: Project) -> None:
    answer = client.get(f"/api/v1/jobs/{make_job(project).id}", headers={"If-Match": '"older"'})

    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")


PATHS = [
    ("GET", "/api/v1/jobs/{job}"),
    ("DELETE", "/api/v1/jobs/{job}"),
    ("GET", "/api/v1/jobs/{job}/logs"),
    ("GET", "/api/v1/jobs/{job}/artifacts"),
    ("GET", "/api/v1/jobs/{job}/artifacts/{other}"),
    ("POST", "/api/v1/jobs/{job}/respond"),
    ("POST", "/api/v1/questions/{question}/answer"),
    ("POST", "/api/v1/stream-tickets"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_another_projects_job_answers_exactly_as_one_that_does_not_exist(
    client: APIClient, method: str, path: str
) -> None:
    job, worker = make_job(make_key().project), make_worker()
    ask(worker, claim_one(worker), question())
    foreign = {"job": str(job.id), "question": str(Question.objects.get().id), "other": str(uuid4())}
    missing = {"job": str(uuid4()), "question": str(uuid4()), "other": foreign["other"]}

    def answer(ids: dict[str, str]) -> tuple[int, str, list[tuple[str, str]]]:
        body = {"job_id": ids["job"]} if "tickets" in path else {"answer": "yes"}
        response = client.generic(
            method, path.format(**ids), json.dumps(body), "application/json", headers={"X-Request-Id": "same"}
        )
        content = response.content.decode()
        for name in ("job", "question"):
            content = content.replace(ids[name], f"<{name}>")
        headers = [pair for pair in response.items() if "RateLimit" not in pair[0]]
        return response.status_code, content, headers

    assert answer(foreign) == answer(missing)
    assert answer(foreign)[0] == 404
    job.refresh_from_db()
    assert job.status == "waiting_for_input"


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_each_address_asks_for_its_scope(method: str, path: str) -> None:
    client = make_key("agents:read").client
    ids = {"job": uuid4(), "question": uuid4(), "other": uuid4()}

    response = client.generic(method, path.format(**ids), "{}", "application/json")

    assert response.status_code == 403
    assert response.json()["missing_scope"].startswith("jobs:")


# --- lists ---


def test_jobs_are_listed_newest_first_in_pages(client: APIClient, project: Project) -> None:
    ids = [str(make_job(project).id) for _ in range(5)]
    make_job(make_key().project)

    seen, cursor = [], ""
    for _ in range(3):
        page = client.get(f"/api/v1/jobs?limit=2{cursor}").json()
        seen += [item["id"] for item in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"

    assert seen == ids[::-1]
    assert page["next_cursor"] is None


def test_filters_choose_and_combine(client: APIClient, project: Project) -> None:
    by = make_caller(project)
    make_version("echo")
    make_version("other")

    def submit(task: str, agent: str, *tags: str) -> str:
        request = services.JobRequest(task=task, agent=agent, tags=list(tags))
        return str(services.submit(request, by=by, project=project).id)

    one = submit("Count the ROWS", "echo", "a", "b")
    two = submit("draw 50% of it", "echo", "a")
    three = submit("count again", "other")
    services.cancel(Job.objects.get(id=three).id, by=by)

    def listed(query: str) -> list[str]:
        response = client.get(f"/api/v1/jobs?{query}")
        assert response.status_code == 200, response.content
        return [item["id"] for item in response.json()["items"]]

    assert listed("status=queued") == [two, one]
    assert listed("status=queued,cancelled") == [three, two, one]
    assert listed("agent=echo") == [two, one]
    assert listed("agent=echo@1&q=rows") == [one]
    assert listed("agent=echo@2") == []
    assert listed("tag=a") == [two, one]
    assert listed("tag=a,b") == [one]
    assert listed("q=count") == [three, one]
    assert listed("q=50%25") == [two]  # no wildcard


def test_a_range_of_times_holds_both_by_the_row_and_by_the_id(client: APIClient, project: Project) -> None:
    job = make_job(project)

    def count(name: str, offset: timedelta) -> int:
        at = (job.created_at + offset).isoformat().replace("+", "%2B")
        return len(client.get(f"/api/v1/jobs?{name}={at}").json()["items"])

    assert count("created_after", -timedelta(seconds=1)) == 1
    assert count("created_after", timedelta(seconds=1)) == 0
    assert count("created_after", timedelta(days=365)) == 0
    assert count("created_before", timedelta(seconds=1)) == 1
    assert count("created_before", -timedelta(seconds=1)) == 0
    assert count("created_before", -timedelta(days=365)) == 0


@pytest.mark.parametrize(
    "query",
    ["status=done", "limit=0", "limit=9999", "cursor=zzz", "agent=A b", "created_after=yesterday", "q=%00",
     "created_before=0001-01-01T00:00:00%2B23:59", "order=id", "status=queued&limit=1&limit=2"],
)  # fmt: skip
def test_a_filter_outside_the_closed_list_is_a_typed_error(client: APIClient, query: str) -> None:
    response = client.get(f"/api/v1/jobs?{query}")

    assert response.status_code == 400
    assert response.json()["code"] in ("invalid_query", "invalid_cursor")


def test_a_list_does_not_read_what_it_does_not_show(client: APIClient, project: Project) -> None:
    make_job(project)

    with connection.execute_wrapper(_refuse_large_columns):
        assert client.get("/api/v1/jobs").status_code == 200


def _refuse_large_columns(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    for column in ('"result"', '"source"', '"input"'):
        assert "jobs_job" not in sql or column not in sql, sql
    return execute(sql, params, many, context)


# --- logs ---


def streamed(response: Any) -> bytes:
    return b"".join(response.streaming_content)


def test_logs_come_in_pages_until_the_final_one(client: APIClient, project: Project) -> None:
    job = run_to_the_end(project, "one", "two", "three")  # queued, started, three lines, completed
    url = f"/api/v1/jobs/{job.id}/logs"

    first = client.get(f"{url}?limit=4").json()
    second = client.get(f"{url}?limit=4&after={first['next_after']}").json()

    assert [event["seq"] for event in first["items"] + second["items"]] == [1, 2, 3, 4, 5, 6]
    assert (first["final"], second["final"]) == (False, True)
    assert second["next_after"] == 6
    event = first["items"][2]
    assert event == {
        "seq": 3, "at": event["at"], "type": "log", "source": "stdout", "level": "info", "message": "one",
        "data": None, "attempt": 1,
    }  # fmt: skip
    assert event["at"].endswith("Z")


def test_a_page_is_not_final_while_the_job_may_still_speak(client: APIClient, project: Project) -> None:
    job = make_job(project)

    page = client.get(f"/api/v1/jobs/{job.id}/logs").json()

    assert (page["final"], page["next_after"], len(page["items"])) == (False, 1, 1)


def test_logs_can_be_filtered(client: APIClient, project: Project) -> None:
    job = run_to_the_end(project, "one")
    url = f"/api/v1/jobs/{job.id}/logs"

    assert [e["message"] for e in client.get(f"{url}?type=log").json()["items"]] == ["one"]
    assert [e["type"] for e in client.get(f"{url}?source=system").json()["items"]] == [
        "job.queued", "job.started", "job.completed",
    ]  # fmt: skip
    assert client.get(f"{url}?level=error").json() == {"items": [], "next_after": 4, "final": True}
    assert client.get(f"{url}?level=loud").status_code == 400
    assert client.get(f"{url}?type=').DROP").status_code == 400
    assert client.get(f"{url}?after=-1").status_code == 400
    assert client.get(f"{url}?after={2**63}").status_code == 400


def test_ndjson_has_every_event_a_line(client: APIClient, project: Project) -> None:
    job = run_to_the_end(project, *(f"line {n}" for n in range(1200)))  # more than one read

    response = client.get(f"/api/v1/jobs/{job.id}/logs", headers={"Accept": "application/x-ndjson"})

    lines = streamed(response).splitlines()
    assert response["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 1204))


def test_plain_text_is_safe_for_a_terminal(client: APIClient, project: Project) -> None:
    job = run_to_the_end(project, "red \x1b[31mred\u202e txt\nforged\r\n")

    response = client.get(f"/api/v1/jobs/{job.id}/logs?type=log", headers={"Accept": "text/plain"})

    text = streamed(response).decode()
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert text.endswith("Z info    stdout log red \\x1b[31mred\\u202e txt\n    forged\n")


def test_an_unknown_format_of_logs_is_a_406(client: APIClient, project: Project) -> None:
    response = client.get(f"/api/v1/jobs/{make_job(project).id}/logs", headers={"Accept": "image/png"})

    assert response.status_code == 406
    assert response.json()["code"] == "not_acceptable"


# --- cancel ---


def test_cancel_answers_200_when_it_is_done_and_again_afterwards(client: APIClient, project: Project) -> None:
    url = f"/api/v1/jobs/{make_job(project).id}"

    first, second = client.delete(url), client.delete(url)

    assert [(r.status_code, r.json()["status"]) for r in (first, second)] == [(200, "cancelled")] * 2


def test_cancel_of_a_running_job_answers_202(client: APIClient, project: Project) -> None:
    job, worker = make_job(project), make_worker()
    claim_one(worker)

    response = client.delete(f"/api/v1/jobs/{job.id}")

    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert response.json()["cancel_requested_at"] is not None


def test_cancel_of_a_job_that_ended_otherwise_is_a_409(client: APIClient, project: Project) -> None:
    response = client.delete(f"/api/v1/jobs/{run_to_the_end(project).id}")

    assert response.status_code == 409
    assert (response.json()["code"], response.json()["job_status"]) == ("job_already_ended", "completed")


# --- questions ---


@pytest.fixture
def asking(project: Project) -> Job:
    """A job that asks two things."""
    job, worker = make_job(project), make_worker()
    ask(
        worker,
        claim_one(worker),
        question("ask#1", prompt="Which tone?", kind="choice", choices=["warm", "cold"],
                 schema={"enum": ["warm", "cold"]}, has_default=True, default="warm"),
        question("ask#2", prompt="Why?"),
    )  # fmt: skip
    return job


def test_an_asking_job_shows_its_questions_in_full(client: APIClient, asking: Job) -> None:
    body = client.get(f"/api/v1/jobs/{asking.id}").json()

    first, second = body["questions"]
    assert (body["status"], body["status_reason"]) == ("waiting_for_input", "question")
    assert (first["kind"], first["prompt"], first["choices"]) == ("choice", "Which tone?", ["warm", "cold"])
    assert (first["status"], first["has_default"], first["default"]) == ("open", True, "warm")
    assert (second["kind"], second["answer"], second["answered_by"]) == ("text", None, "")


def test_one_of_several_open_questions_must_be_named(client: APIClient, asking: Job) -> None:
    url = f"/api/v1/jobs/{asking.id}/respond"

    unclear = client.post(url, {"answer": "warm"})
    first, second = (item["id"] for item in unclear.json()["questions"])
    partly = client.post(url, {"question_id": first, "answer": "warm"})
    rest = client.post(url, {"answer": "because"})

    assert (unclear.status_code, unclear.json()["code"]) == (409, "several_questions_open")
    assert (partly.status_code, partly.json()["status"]) == (200, "waiting_for_input")
    assert (rest.status_code, rest.json()["status"]) == (200, "queued")
    assert [item["answer"] for item in rest.json()["questions"]] == ["warm", "because"]
    assert rest.json()["questions"][1]["id"] == second


def test_several_answers_go_together(client: APIClient, asking: Job) -> None:
    first, second = (str(item.id) for item in asking.questions.order_by("id"))

    response = client.post(f"/api/v1/jobs/{asking.id}/respond", {"answers": {first: "cold", second: ""}})

    assert (response.status_code, response.json()["status"]) == (200, "queued")


def test_who_answered_comes_from_the_key_and_a_second_answer_is_told(
    client: APIClient, key: KeyInHand, asking: Job
) -> None:
    url = f"/api/v1/questions/{asking.questions.earliest('id').id}/answer"

    first, second = client.post(url, {"answer": "warm"}), client.post(url, {"answer": "cold"})

    assert first.status_code == 200
    assert (first.json()["answer"], first.json()["job"]["status"]) == ("warm", "waiting_for_input")
    assert second.status_code == 409
    assert second.json()["code"] == "question_already_answered"
    assert (second.json()["answered_by"], second.json()["answered_via"]) == (f"key:{key.key.name}", "api_key")


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 422, ""),
        ({"answer": 1, "answers": {}}, 422, "/answers"),
        ({"answers": {}}, 422, "/answers"),
        ({"answers": {"x": 1}}, 422, "/answers"),
        ({"question_id": "x", "answer": 1}, 422, "/question_id"),
        ({"answer": "x", "answered_by": "the boss"}, 422, "/answered_by"),
    ],
)
def test_a_malformed_answer_is_pointed_at(
    client: APIClient, asking: Job, body: dict[str, Any], status: int, pointer: str
) -> None:
    response = client.post(f"/api/v1/jobs/{asking.id}/respond", body)

    assert response.status_code == status, response.content
    assert pointer in {error["pointer"] for error in response.json()["errors"]}


def test_an_answer_that_does_not_fit_says_what_would(client: APIClient, asking: Job) -> None:
    question_id = asking.questions.earliest("id").id

    response = client.post(f"/api/v1/jobs/{asking.id}/respond", {"question_id": question_id, "answer": "hot"})

    assert (response.status_code, response.json()["code"]) == (422, "invalid_answer")
    assert "warm, cold" in response.json()["detail"]
    assert response.json()["errors"][0]["pointer"] == "/answer"


def test_a_job_that_asks_nothing_cannot_be_answered(client: APIClient, project: Project) -> None:
    response = client.post(f"/api/v1/jobs/{make_job(project).id}/respond", {"answer": "x"})

    assert (response.status_code, response.json()["code"]) == (409, "job_not_waiting")


def test_the_inbox_holds_open_questions_of_all_jobs(client: APIClient, project: Project, asking: Job) -> None:
    worker = make_worker()
    other = make_job(project)
    ask(worker, claim_one(worker), question())
    make_job(make_key().project)
    ask(worker, claim_one(worker), question())  # of another project

    everything = client.get("/api/v1/questions").json()["items"]
    of_one = client.get(f"/api/v1/questions?job={other.id}").json()["items"]
    client.post(f"/api/v1/jobs/{other.id}/respond", {"answer": "so"})
    answered = client.get("/api/v1/questions?status=answered").json()["items"]

    assert len(everything) == 3
    assert [item["job"]["id"] for item in of_one] == [str(other.id)]
    assert of_one[0]["job"]["task"] == "do it"
    assert [item["answer"] for item in answered] == ["so"]
    assert client.get("/api/v1/questions?status=lost").status_code == 400


# --- operation ---


def test_workers_are_told_apart_by_the_databases_clock() -> None:
    alive, lost, stopped, draining, gone = (make_worker() for _ in range(5))
    now = timezone.now()
    rows = Worker.objects
    rows.filter(id=lost).update(lease_until=now - timedelta(seconds=1))
    rows.filter(id=draining).update(drain_requested_at=now)
    rows.filter(id=gone).update(heartbeat_at=now - timedelta(days=2))
    queries.stop_worker(stopped)
    client = make_key("admin:workers").client

    items = client.get("/api/v1/admin/workers").json()["items"]

    assert {item["id"]: item["state"] for item in items} == {
        str(alive): "alive", str(lost): "lost", str(stopped): "stopped", str(draining): "draining",
    }  # fmt: skip
    assert all(0 <= item["heartbeat_age_s"] < 60 for item in items)
    assert [i["id"] for i in client.get("/api/v1/admin/workers?state=lost").json()["items"]] == [str(lost)]
    assert make_key("jobs:read").client.get("/api/v1/admin/workers").status_code == 403


def test_metrics_count_what_is_there(project: Project, asking: Job) -> None:
    run_to_the_end(project)
    make_job(project)
    client = make_key("admin:metrics").client

    body = client.get("/api/v1/admin/metrics").json()
    text = client.get("/api/v1/admin/metrics", headers={"Accept": "text/plain"}).content.decode()

    assert body["jobs"] == {"queued": 1, "running": 0, "waiting_for_input": 1, "scheduled": 0}
    assert body["questions"]["open"] == 2
    assert (body["workers"]["alive"], body["workers"]["slots"]) == (2, 16)
    assert (body["last_hour"]["completed"], body["last_hour"]["success"]) == (1, 1.0)
    assert body["oldest_queued_s"] >= 0
    assert 'engine_jobs{status="queued"} 1.0\n' in text
    assert "# TYPE engine_open_questions gauge\nengine_open_questions 2.0\n" in text
    assert 'engine_last_hour_wait_seconds{quantile="0.95"}' in text
    assert make_key("jobs:read").client.get("/api/v1/admin/metrics").status_code == 403


# --- the description of the API ---


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """The generated OpenAPI document; its objects closed, so that a member it does not know is found."""
    generator: Any = SchemaGenerator  # ships no types
    document: dict[str, Any] = generator().get_schema(request=None, public=True)
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return document


def test_answers_are_as_the_description_says(
    client: APIClient, key: KeyInHand, project: Project, asking: Job, description: dict[str, Any]
) -> None:
    done = run_to_the_end(project, "one", result=[1])
    make_job(project)
    operator = make_key("admin:workers", "admin:metrics").client
    paths = [
        (client, "/api/v1/jobs", "/api/v1/jobs"),
        (client, f"/api/v1/jobs/{asking.id}", "/api/v1/jobs/{job_id}"),
        (client, f"/api/v1/jobs/{done.id}", "/api/v1/jobs/{job_id}"),
        (client, f"/api/v1/jobs/{done.id}/logs", "/api/v1/jobs/{job_id}/logs"),
        (client, f"/api/v1/jobs/{done.id}/artifacts", "/api/v1/jobs/{job_id}/artifacts"),
        (client, "/api/v1/questions", "/api/v1/questions"),
        (operator, "/api/v1/admin/workers", "/api/v1/admin/workers"),
    ]

    for caller, url, path in paths:
        content = description["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        schema = {**content["schema"], "components": description["components"]}
        wrong = [error.message for error in Draft202012Validator(schema).iter_errors(caller.get(url).json())]
        assert wrong == [], url
