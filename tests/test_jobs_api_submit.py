"""POST /api/v1/jobs: what is accepted, what is refused and with which pointer, and what is stored."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError
from django.utils import timezone
from rest_framework.test import APIClient

from jobs import storage, uploads, wakeups
from jobs.models import InputFile, Job
from tests.agents import make_card
from tests.factories import make_key
from tests.jobs import make_version

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client() -> APIClient:
    make_version("echo")
    return make_key("jobs:read", "jobs:write", "jobs:respond").client


@pytest.fixture(autouse=True)
def files_in_a_folder_of_their_own(settings: Any, tmp_path: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "artifacts"},
        },
    }


def csv(name: str = "reviews.csv", content: bytes = b"text\ngood\n") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content, content_type="image/png")


def pointers(response: Any) -> set[str]:
    return {error["pointer"] for error in response.json()["errors"]}


def test_a_named_agent_and_a_task_make_a_queued_job(client: APIClient) -> None:
    response = client.post("/api/v1/jobs", {"task": "say hello", "agent": "echo"})

    body = response.json()
    assert response.status_code == 201
    assert response["Location"] == f"/api/v1/jobs/{body['id']}"
    assert body["status"] == "queued"
    assert body["agent"] == {"slug": "echo", "version": 1, "name": "echo"}
    assert body["why"] == {"decision": "named", "agent": "echo"}
    assert (body["attempts"], body["questions"], body["artifacts"], body["result"]) == ([], [], [], None)
    assert body == client.get(response["Location"]).json()


def test_every_option_is_stored(client: APIClient) -> None:
    run_at = timezone.now() + timedelta(hours=1)
    options = {
        "task": "say hello",
        "agent": "echo@1",
        "input": {"tone": "warm"},
        "priority": "high",
        "run_at": run_at.isoformat(),
        "timeout_s": 60,
        "deadline_s": 7200,
        "max_attempts": 5,
        "queue": "slow",
        "tags": ["a", "b", "a"],
        "metadata": {"order": 7},
        "webhook_url": "https://example.com/hook",
        "budget": {"tokens": 1000},
    }

    body = client.post("/api/v1/jobs", options).json()

    job = Job.objects.get(id=body["id"])
    assert body["status"] == job.status == "scheduled"
    assert (job.run_at, job.timeout_seconds, job.max_attempts, job.queue) == (run_at, 60, 5, "slow")
    assert (job.tags, job.metadata, job.webhook_url) == (["a", "b"], {"order": 7}, "https://example.com/hook")
    assert (job.input, job.priority, job.budget) == (
        {"tone": "warm"}, "high", {"tokens": 1000, "on_exceeded": "ask"},
    )  # fmt: skip
    assert job.deadline_at is not None
    assert abs(job.deadline_at - job.created_at - timedelta(hours=2)) < timedelta(seconds=5)


def test_members_that_are_null_count_as_not_given(client: APIClient) -> None:
    body = {"task": "x", "agent": "echo", "priority": None, "run_at": None, "tags": None, "input": None}

    response = client.post("/api/v1/jobs", body)

    assert response.status_code == 201
    assert response.json()["priority"] == "normal"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"task": ""}, "/task"),
        ({"task": None}, "/task"),
        ({"task": "x" * 100_001}, "/task"),
        ({"agent": "No Slug"}, "/agent"),
        ({"agent": "echo@0"}, "/agent"),
        ({"input": [1]}, "/input"),
        ({"priority": "highest"}, "/priority"),
        ({"run_at": "tomorrow"}, "/run_at"),
        ({"run_at": "2999-01-01T00:00:00Z"}, "/run_at"),
        ({"timeout_s": 0}, "/timeout_s"),
        ({"timeout_s": 10**9}, "/timeout_s"),
        ({"deadline_s": -1}, "/deadline_s"),
        ({"max_attempts": 21}, "/max_attempts"),
        ({"queue": "a b"}, "/queue"),
        ({"queue": ""}, "/queue"),
        ({"tags": "a"}, "/tags"),
        ({"tags": ["x" * 65]}, "/tags/0"),
        ({"tags": [str(n) for n in range(21)]}, "/tags"),
        ({"metadata": {"x": "y" * 20_000}}, "/metadata"),
        ({"webhook_url": "javascript:alert(1)"}, "/webhook_url"),
        ({"webhook_url": "ftp://example.com/"}, "/webhook_url"),
        ({"budget": {"dollars": 1}}, "/budget/dollars"),
        ({"taks": "typo"}, "/taks"),
    ],
)
def test_a_wrong_member_is_a_422_that_points_at_it(
    client: APIClient, change: dict[str, Any], pointer: str
) -> None:
    response = client.post("/api/v1/jobs", {"task": "x", "agent": "echo", **change})

    assert response.status_code == 422, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert pointer in pointers(response)
    assert not Job.objects.exists()


def test_a_body_that_is_no_object_is_refused(client: APIClient) -> None:
    for body in ("[]", '"x"', "7", "null"):
        response = client.post("/api/v1/jobs", body, content_type="application/json")

        assert response.status_code == 422


def test_an_agent_that_is_not_there_is_a_typed_error(client: APIClient) -> None:
    response = client.post("/api/v1/jobs", {"task": "x", "agent": "nobody"})

    assert response.status_code in (404, 422)
    assert response.json()["code"] == "agent_not_found"
    assert not Job.objects.exists()


def test_input_that_does_not_fit_the_agent_is_pointed_at(client: APIClient) -> None:
    make_version("strict", input_schema={"type": "object", "properties": {"n": {"type": "integer"}}})

    response = client.post("/api/v1/jobs", {"task": "x", "agent": "strict", "input": {"n": "seven"}})

    assert response.status_code == 422
    assert pointers(response) == {"/input/n"}


def test_a_task_that_no_agent_fits_is_a_rejected_job_and_not_an_error() -> None:
    client = make_key("jobs:read", "jobs:write").client  # nothing is registered at all

    response = client.post("/api/v1/jobs", {"task": "fold my laundry"})

    body = response.json()
    assert response.status_code == 201
    assert (body["status"], body["status_reason"], body["agent"]) == ("rejected", "no_match", None)
    assert body["error"]["code"] == "no_match"
    assert body["why"]["decision"] == "none"
    assert body["finished_at"] is not None


POET = {
    "slug": "poet",
    "name": "Poet",
    "description": "Writes poems about rain",
    "instructions": "Write poems.",
}
RAIN = {"task": "Write poems about rain"}


def test_no_job_is_routed_to_an_agent_that_cannot_run(settings: Any) -> None:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = ""
    client = make_key("jobs:read", "jobs:write", "agents:read", "agents:write").client
    assert client.post("/api/v1/agents", POET).status_code == 201

    found = client.post("/api/v1/agents/discover", RAIN).json()
    alone = client.post("/api/v1/jobs", RAIN).json()
    bard = make_card("bard", name="Bard", description="Writes poems about rain and snow")
    assert client.post("/api/v1/agents", bard).status_code == 201
    beside = client.post("/api/v1/jobs", RAIN).json()

    assert (found["decision"], found["results"][0]["health"]["status"]) == ("match", "unavailable")
    assert (alone["status"], alone["status_reason"]) == ("rejected", "agent_unavailable")
    assert alone["error"]["message"] == "The agent poet fits this task and cannot run now."
    assert "OPENAI_API_KEY" in alone["error"]["remedy"]
    assert alone["why"]["nearest"][0]["agent"] == "poet"
    assert (beside["status"], beside["agent"]["slug"]) == ("queued", "bard")


def test_the_same_idempotency_key_makes_one_job(client: APIClient) -> None:
    body = {"task": "x", "agent": "echo"}

    first = client.post("/api/v1/jobs", body, headers={"Idempotency-Key": "k1"})
    second = client.post("/api/v1/jobs", body, headers={"Idempotency-Key": "k1"})
    third = client.post("/api/v1/jobs", {**body, "task": "y"}, headers={"Idempotency-Key": "k1"})

    assert (first.status_code, second.status_code, third.status_code) == (201, 201, 422)
    assert first.json() == second.json()
    assert second["Idempotency-Replayed"] == "true"
    assert second["Location"] == first["Location"]
    assert Job.objects.count() == 1


# --- rights ---


def test_a_key_without_the_scope_is_told_which_one_is_missing() -> None:
    response = make_key("jobs:read").client.post("/api/v1/jobs", {"task": "x"})

    assert response.status_code == 403
    assert response.json()["missing_scope"] == "jobs:write"


def test_without_a_key_nothing_is_said_but_how_to_come_in() -> None:
    response = APIClient().post("/api/v1/jobs", {"task": "x"}, format="json")

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"


def test_a_key_for_one_agent_submits_to_that_agent_alone() -> None:
    make_version("echo")
    make_version("other")
    client = make_key("agents:echo:run").client

    allowed = client.post("/api/v1/jobs", {"task": "x", "agent": "echo@1"})
    other = client.post("/api/v1/jobs", {"task": "x", "agent": "other"})
    unnamed = client.post("/api/v1/jobs", {"task": "x"})
    listed = client.get("/api/v1/jobs")

    assert allowed.status_code == 201
    assert (other.status_code, other.json()["missing_scope"]) == (403, "agents:other:run")
    assert (unnamed.status_code, unnamed.json()["missing_scope"]) == (403, "jobs:write")
    assert (listed.status_code, listed.json()["missing_scope"]) == (403, "jobs:read")


# --- files ---


def test_files_come_along_and_are_stored_by_content(client: APIClient) -> None:
    response = client.post(
        "/api/v1/jobs",
        {"task": "x", "agent": "echo", "input": '{"tone": "warm"}', "tags": '["a"]', "timeout_s": "60",
         "files": [csv(), csv("logo.png", b"\x89PNG\r\n\x1a\n....")]},
        format="multipart",
    )  # fmt: skip

    body = response.json()
    assert response.status_code == 201, body
    job = Job.objects.get(id=body["id"])
    assert (job.input, job.tags, job.timeout_seconds) == ({"tone": "warm"}, ["a"], 60)
    assert [(file["name"], file["media_type"], file["size"]) for file in body["input_files"]] == [
        ("logo.png", "image/png", 12),
        ("reviews.csv", "text/csv", 10),
    ]
    row = InputFile.objects.get(job=job, name="reviews.csv")
    assert row.sha256 == hashlib.sha256(b"text\ngood\n").hexdigest()
    with storage.local_file(row.storage_key) as path:
        assert path.read_bytes() == b"text\ngood\n"


def test_a_large_file_passes_through_disk(client: APIClient) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB: above what Django keeps in memory

    response = client.post(
        "/api/v1/jobs", {"task": "x", "agent": "echo", "files": csv("big.bin", content)}, format="multipart"
    )

    (file,) = response.json()["input_files"]
    assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_files_over_the_cap_are_a_413_before_any_job_exists(client: APIClient, settings: Any) -> None:
    settings.ENGINE_MAX_UPLOAD_BYTES = 1024

    response = client.post(
        "/api/v1/jobs",
        {"task": "x", "agent": "echo", "files": [csv(content=b"x" * 600), csv(content=b"y" * 600)]},
        format="multipart",
    )

    assert response.status_code == 413
    assert response.json()["code"] == "files_too_large"
    assert not Job.objects.exists()
    assert stored_keys() == []


def stored_keys() -> list[str]:
    root = Path(storage.storage().path(""))  # the local folder of this test
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_files_of_a_refused_job_are_not_kept(client: APIClient) -> None:
    make_version("strict", input_schema={"type": "object", "required": ["n"]})

    for agent in ("strict", "nobody"):
        response = client.post(
            "/api/v1/jobs", {"task": "x", "agent": agent, "files": csv()}, format="multipart"
        )

        assert response.status_code in (404, 422)
        assert stored_keys() == []


@pytest.mark.parametrize(
    "fault", [OperationalError("the connection was lost"), RuntimeError("a fault of ours")]
)
def test_files_stay_when_the_job_was_committed_and_its_caller_never_heard(
    client: APIClient, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(wakeups.notifier, "send", fail)  # called after the commit

    response = client.post("/api/v1/jobs", {"task": "x", "agent": "echo", "files": csv()}, format="multipart")

    assert response.status_code >= 500
    assert stored_keys() == [InputFile.objects.get().storage_key]


def test_files_stay_when_nobody_can_tell_whether_the_job_was_committed(client: APIClient) -> None:
    with (
        pytest.raises(OperationalError),
        uploads.stored([csv()], project_id=uuid4(), job_id=uuid4()),
    ):
        raise OperationalError("the connection was lost")

    assert len(stored_keys()) == 1


def test_files_of_a_repeated_request_are_kept_once(client: APIClient) -> None:
    def send() -> Any:
        body = {"task": "x", "agent": "echo", "files": csv()}
        return client.post("/api/v1/jobs", body, format="multipart", headers={"Idempotency-Key": "k"})

    first, second = send(), send()

    assert first.json() == second.json()
    assert second["Idempotency-Replayed"] == "true"
    assert len(stored_keys()) == 1
    assert InputFile.objects.get().storage_key == stored_keys()[0]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"upload": csv()}, "/upload"),
        ({"input": csv()}, "/input"),
        ({"files": "not a file"}, "/files"),
        ({"taks": "x"}, "/taks"),
        ({"priority": ["low", "high"]}, "/priority"),
    ],
)
def test_a_wrong_part_of_a_form_is_pointed_at(
    client: APIClient, fields: dict[str, Any], pointer: str
) -> None:
    response = client.post("/api/v1/jobs", {"task": "x", "agent": "echo", **fields}, format="multipart")

    assert response.status_code == 422, response.content
    assert pointer in pointers(response)
    assert not Job.objects.exists()


def test_json_in_a_form_passes_the_same_gate(client: APIClient) -> None:
    response = client.post("/api/v1/jobs", {"task": "x", "input": '{"a": 1, "a": 2}'}, format="multipart")

    assert response.status_code == 400
    assert response.json()["code"] == "unacceptable_json"


def test_more_files_than_a_job_may_have_are_refused(client: APIClient) -> None:
    files = [csv(f"{number}.csv") for number in range(51)]

    response = client.post("/api/v1/jobs", {"task": "x", "agent": "echo", "files": files}, format="multipart")

    assert response.status_code == 422
    assert pointers(response) == {"/files"}


def test_other_content_types_are_refused(client: APIClient) -> None:
    response = client.post("/api/v1/jobs", "task=x", content_type="application/x-www-form-urlencoded")

    assert response.status_code == 415


def test_a_file_name_from_hell_is_stored_under_a_plain_one(client: APIClient) -> None:
    name = "..\\..\\etc/\u202egnp.exe"
    boundary = uuid4().hex
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="task"\r\n\r\nx\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="agent"\r\n\r\necho\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nabc\r\n'
        f"--{boundary}--\r\n"
    )

    response = client.generic("POST", "/api/v1/jobs", body, f"multipart/form-data; boundary={boundary}")

    assert response.status_code == 201, response.content
    assert json.loads(response.content)["input_files"][0]["name"] == "gnp.exe"
