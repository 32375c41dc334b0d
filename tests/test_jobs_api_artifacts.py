"""Artifacts: listed, downloaded whole, in part or not at all, and never run by a browser."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from jobs import storage
from jobs.models import Artifact, Job
from tests.factories import KeyInHand, make_key
from tests.jobs import make_job

pytestmark = pytest.mark.django_db(transaction=True)

CONTENT = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def files_in_a_folder_of_their_own(settings: Any, tmp_path: Path) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "artifacts"},
        },
    }


@pytest.fixture
def key() -> KeyInHand:
    return make_key("jobs:read")


@pytest.fixture
def client(key: KeyInHand) -> APIClient:
    return key.client


@pytest.fixture
def job(key: KeyInHand) -> Job:
    return make_job(key.project)


def make_artifact(
    job: Job, name: str = "chart.png", media_type: str = "image/png", content: bytes = CONTENT
) -> str:
    """An artifact of the job, its bytes stored; returns its address."""
    blob = storage.store_blocks(
        [content], folder=storage.job_folder(job.project_id, job.id), most_bytes=10**6
    )
    artifact = Artifact.objects.create(
        job=job, project_id=job.project_id, attempt=1, name=name, media_type=media_type, size=blob.size,
        sha256=blob.sha256, storage_key=blob.key,
    )  # fmt: skip
    return f"/api/v1/jobs/{job.id}/artifacts/{artifact.id}"


def body(response: Any) -> bytes:
    content = b"".join(response.streaming_content)
    response.close()
    return content


def test_artifacts_are_listed_with_their_addresses(client: APIClient, job: Job) -> None:
    url = make_artifact(job)
    make_artifact(job, "report/table.csv", "text/csv")

    listed = client.get(f"/api/v1/jobs/{job.id}/artifacts").json()

    assert [item["name"] for item in listed["items"]] == ["report/table.csv", "chart.png"]
    assert listed["items"][1]["url"] == url
    assert listed["items"][1]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert listed["next_cursor"] is None


def test_a_download_is_an_attachment_that_no_browser_runs(client: APIClient, job: Job) -> None:
    response = client.get(make_artifact(job, 'out/ré"port.html', "text/html"))

    assert body(response) == CONTENT
    assert response["Content-Type"] == "text/html"
    assert response["Content-Disposition"].startswith("attachment; filename")
    assert "r%C3%A9%22port.html" in response["Content-Disposition"]
    assert response["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Length"] == str(len(CONTENT))
    assert response["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("media_type", "shown_as"),
    [
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("application/json", "application/json"),
        ("text/csv", "text/plain; charset=utf-8"),
        ("text/markdown", "text/plain; charset=utf-8"),
        ("text/html", None),
        ("image/svg+xml", None),
        ("application/pdf", None),
        ("application/javascript", None),
    ],
)
def test_only_harmless_kinds_are_shown_inline(
    client: APIClient, job: Job, media_type: str, shown_as: str | None
) -> None:
    response = client.get(make_artifact(job, "a", media_type) + "?inline=1")

    body(response)
    assert response["Content-Type"] == (shown_as or media_type)
    assert response["Content-Disposition"].startswith("inline" if shown_as else "attachment")
    assert "sandbox" in response["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1000-", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=-99999", 0, 1023),
        ("bytes=1000-99999", 1000, 1023),
        ("BYTES = 5-6", 5, 6),
    ],
)
def test_a_range_is_sent_in_part(client: APIClient, job: Job, asked: str, start: int, end: int) -> None:
    response = client.get(make_artifact(job), headers={"Range": asked})

    assert response.status_code == 206
    assert body(response) == CONTENT[start : end + 1]
    assert response["Content-Range"] == f"bytes {start}-{end}/1024"
    assert response["Content-Length"] == str(end - start + 1)


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "bytes=9-3", "bytes=x-", "bytes=-", "lines=1-2", "bytes=--5"]
)
def test_what_is_not_one_range_is_answered_with_the_whole(client: APIClient, job: Job, asked: str) -> None:
    response = client.get(make_artifact(job), headers={"Range": asked})

    assert (response.status_code, body(response)) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_outside_of_the_file_is_a_416(client: APIClient, job: Job, asked: str) -> None:
    response = client.get(make_artifact(job), headers={"Range": asked})

    assert response.status_code == 416
    assert response["Content-Range"] == "bytes */1024"
    assert response.json()["code"] == "range_not_satisfiable"


def test_a_range_holds_only_for_the_file_it_was_begun_with(client: APIClient, job: Job) -> None:
    url = make_artifact(job)
    etag = client.head(url)["ETag"]

    same = client.get(url, headers={"Range": "bytes=0-9", "If-Range": etag})
    other = client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"else"'})

    assert (same.status_code, body(same)) == (206, CONTENT[:10])
    assert (other.status_code, body(other)) == (200, CONTENT)


def test_a_client_that_has_the_file_gets_a_304(client: APIClient, job: Job) -> None:
    url = make_artifact(job)

    response = client.get(url, headers={"If-None-Match": client.head(url)["ETag"], "Range": "bytes=9999-"})

    assert (response.status_code, response.content) == (304, b"")
    assert response["ETag"]


def test_head_tells_the_size_and_opens_nothing(client: APIClient, job: Job) -> None:
    url = make_artifact(job)
    Artifact.objects.update(storage_key="nowhere")

    response = client.head(url)

    assert (response.status_code, response.content) == (200, b"")
    assert response["Content-Length"] == "1024"


def test_an_empty_file_can_be_downloaded(client: APIClient, job: Job) -> None:
    url = make_artifact(job, "empty.txt", "text/plain", b"")

    assert body(client.get(url)) == b""
    assert client.get(url, headers={"Range": "bytes=0-"}).status_code == 416


def test_a_file_that_is_gone_is_a_404_and_not_a_fault(client: APIClient, job: Job) -> None:
    url = make_artifact(job)
    Artifact.objects.update(storage_key="nowhere")

    response = client.get(url)

    assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")


def test_whatever_the_client_accepts_the_file_comes_as_it_is(client: APIClient, job: Job) -> None:
    response = client.get(make_artifact(job), headers={"Accept": "image/webp"})

    assert body(response) == CONTENT


def test_another_projects_artifact_does_not_exist(client: APIClient) -> None:
    job = make_job(make_key().project)

    assert client.get(make_artifact(job)).status_code == 404
    assert client.get(f"/api/v1/jobs/{job.id}/artifacts").status_code == 404


def test_an_artifact_is_found_below_its_own_job_alone(client: APIClient, job: Job, key: KeyInHand) -> None:
    other = make_job(key.project)

    assert client.get(make_artifact(job).replace(str(job.id), str(other.id))).status_code == 404
