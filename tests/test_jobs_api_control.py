"""Bulk submission, retry, fork, checkpoints, and pauses over the API."""

from typing import Any

import pytest

from jobs import claiming, continuing
from jobs.models import Job
from tests.factories import KeyInHand, make_key
from tests.jobs import claim_one, make_project, make_version, make_worker
from tests.test_jobs_continuing import ended

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def key() -> KeyInHand:
    """An operator's key of the project that `ended` makes jobs in."""
    return make_key(project=make_project())


def post(key: KeyInHand, path: str, body: Any = None, **headers: str) -> Any:
    return key.client.post(
        f"/api/v1/{path}", body if body is not None else {}, format="json", headers=headers
    )


def test_many_jobs_are_submitted_at_once_each_with_its_own_result(key: KeyInHand) -> None:
    make_version("echo")

    reply = post(
        key,
        "jobs/bulk",
        {"jobs": [{"task": "a", "agent": "echo"}, {"agent": "echo"}, {"task": "c", "agent": "nobody"}]},
    )

    assert reply.status_code == 200, reply.content
    good, invalid, missing = reply.json()["items"]
    assert Job.objects.get().id == claim_one(make_worker()).id
    assert good["status"] == "queued"
    assert good["links"]["self"] == f"/api/v1/jobs/{good['id']}"
    assert (invalid["error"]["code"], invalid["error"]["errors"][0]["pointer"]) == (
        "validation_failed",
        "/task",
    )
    assert missing["error"]["status"] == 404


def test_bulk_is_bounded_and_replayed(key: KeyInHand) -> None:
    make_version("echo")
    assert post(key, "jobs/bulk", {"jobs": []}).status_code == 422
    assert post(key, "jobs/bulk", {"jobs": [{"task": "x"}] * 1001}).status_code == 422

    body = {"jobs": [{"task": "a", "agent": "echo"}] * 20}
    first = post(key, "jobs/bulk", body, **{"Idempotency-Key": "k1"})
    again = post(key, "jobs/bulk", body, **{"Idempotency-Key": "k1"})

    assert first.json() == again.json()
    assert Job.objects.count() == 20


def test_a_retry_refuses_what_it_would_not_heed(key: KeyInHand) -> None:
    old = ended()

    refused = post(key, f"jobs/{old.id}/retry", {"budget": {"tokens": 9}})

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/budget")
    assert key.client.post(f"/api/v1/jobs/{old.id}/retry").status_code == 201  # no body at all


def test_retry_and_fork_make_new_jobs(key: KeyInHand) -> None:
    old, done = ended(), ended(Job.Status.COMPLETED)

    listed = key.client.get(f"/api/v1/jobs/{old.id}/checkpoints").json()["items"]
    retried = post(key, f"jobs/{old.id}/retry")
    forked = post(key, f"jobs/{old.id}/fork", {"checkpoint": "ask#1", "answers": {"ask#1": "anew"}})

    assert [item["key"] for item in listed] == ["load#1", "ask#1"]
    for reply in (retried, forked):
        assert reply.status_code == 201, reply.content
        assert reply["Location"] == f"/api/v1/jobs/{reply.json()['id']}"
        assert reply.json()["retried_from"] == str(old.id)
    assert post(key, f"jobs/{done.id}/retry").status_code == 409
    assert post(key, f"jobs/{done.id}/fork", {"checkpoint": "nowhere"}).status_code == 404


def test_another_project_can_continue_nothing(key: KeyInHand) -> None:
    old = ended()
    stranger = make_key()

    for path, body in (("retry", None), ("fork", {"checkpoint": "load#1"})):
        assert post(stranger, f"jobs/{old.id}/{path}", body).status_code == 404
    assert stranger.client.get(f"/api/v1/jobs/{old.id}/checkpoints").status_code == 404
    assert continuing.retry(old.id, by=key.caller).retried_from_id == old.id


def test_a_queue_is_paused_and_resumed(key: KeyInHand) -> None:
    make_version("echo")
    post(key, "jobs", {"task": "a", "agent": "echo", "queue": "nightly"})

    assert post(key, "admin/queues/nightly/pause").status_code == 204
    shown = {queue["name"]: queue for queue in key.client.get("/api/v1/admin/queues").json()["items"]}
    assert (shown["nightly"]["queued"], bool(shown["nightly"]["paused_at"])) == (1, True)
    assert claiming.claim(make_worker(), queue="nightly", limit=1) == []

    assert post(key, "admin/queues/nightly/resume").status_code == 204
    assert len(claiming.claim(make_worker(), queue="nightly", limit=1)) == 1
    assert post(make_key("admin:workers"), "admin/queues/nightly/pause").status_code == 403


def test_an_agent_is_paused_by_whom_it_belongs_to(key: KeyInHand) -> None:
    make_version("echo")
    post(key, "jobs", {"task": "a", "agent": "echo"})

    assert post(make_key("agents:write"), "agents/echo/pause").status_code == 403
    assert post(key, "agents/echo/pause").status_code == 204
    assert claiming.claim(make_worker(), queue="default", limit=1) == []
    assert post(key, "agents/echo/resume").status_code == 204
    assert len(claiming.claim(make_worker(), queue="default", limit=1)) == 1
    assert post(key, "agents/nobody/pause").status_code == 404
