"""What a key and a project may have: unfinished jobs, jobs of a month, bytes of files."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.utils import timezone

from apikeys.models import Project
from jobs.models import Artifact, InputFile, Job
from tests.dashboard import make_artifact
from tests.factories import KeyInHand, make_key, make_project
from tests.jobs import make_version

pytestmark = pytest.mark.django_db(transaction=True)

JOBS = "/api/v1/jobs"


@pytest.fixture(autouse=True)
def _an_agent_and_a_folder(settings: Any, tmp_path: Path) -> None:
    make_version("echo")
    artifacts = {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": tmp_path / "artifacts"},
    }
    settings.STORAGES = {**settings.STORAGES, "artifacts": artifacts}


def submit(key: KeyInHand, **more: Any) -> Any:
    return key.client.post(JOBS, {"task": "x", "agent": "echo", **more})


def upload(key: KeyInHand, size: int) -> Any:
    body = {"task": "x", "agent": "echo", "files": [SimpleUploadedFile("a.txt", b"a" * size)]}
    return key.client.post(JOBS, body, format="multipart")


def test_a_key_has_as_many_unfinished_jobs_as_it_may() -> None:
    key = make_key(max_concurrent_jobs=2)
    other = make_key(project=key.project)
    first = submit(key).json()

    last, refused = submit(key), submit(key)
    others = submit(other)
    key.client.delete(f"{JOBS}/{first['id']}")
    again = submit(key)

    assert (last.status_code, refused.status_code) == (201, 429)
    assert refused.json()["code"] == "too_many_jobs"
    assert refused.json()["max_concurrent_jobs"] == 2
    assert refused["Retry-After"] == "5"
    assert (others.status_code, again.status_code) == (201, 201)


def test_submissions_at_once_do_not_share_the_last_place() -> None:
    key = make_key(max_concurrent_jobs=3)

    def submitted(_: int) -> int:
        try:
            return int(submit(key).status_code)
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        codes = sorted(pool.map(submitted, range(12)))

    assert codes == [201] * 3 + [429] * 9
    assert Job.objects.count() == 3


def test_a_month_has_as_many_jobs_as_the_project_may() -> None:
    key = make_key(project=make_project(monthly_jobs=2))

    codes = [submit(key).status_code for _ in range(3)]
    refused = submit(key)

    assert codes == [201, 201, 429]
    body = refused.json()
    assert (body["code"], body["monthly_jobs"], body["submitted"]) == ("month_used_up", 2, 2)
    now = timezone.now()
    next_month = datetime.combine(
        (date(now.year, now.month, 1) + timedelta(days=31)).replace(day=1), now.min.time()
    )
    left = (next_month.replace(tzinfo=UTC) - now).total_seconds()
    assert abs(int(refused["Retry-After"]) - left) < 120


def test_a_new_month_begins_anew_and_deleted_jobs_still_count() -> None:
    project = make_project(monthly_jobs=1)
    key = make_key(project=project)
    submit(key)
    Job.objects.update(status="cancelled", finished_at=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM jobs_job")

    while_it_lasts = submit(key)
    Project.objects.update(month=date(2020, 1, 1))
    afterwards = submit(key)

    assert (while_it_lasts.status_code, afterwards.status_code) == (429, 201)


def test_a_limit_that_is_new_counts_what_came_before() -> None:
    operator = make_key()
    key = make_key("jobs:write", project=operator.project)
    submit(key)
    operator.client.patch(f"/api/v1/admin/projects/{key.project.slug}", {"monthly_jobs": 2})

    assert [submit(key).status_code for _ in range(2)] == [201, 429]


def test_a_bulk_is_taken_whole_or_not_at_all() -> None:
    key = make_key(project=make_project(monthly_jobs=2))
    order = {"task": "x", "agent": "echo"}

    refused = key.client.post(f"{JOBS}/bulk", {"jobs": [order] * 3})
    taken = key.client.post(f"{JOBS}/bulk", {"jobs": [order] * 2})

    assert (refused.status_code, taken.status_code) == (429, 200)
    assert Job.objects.count() == 2


def test_a_retry_needs_room_too() -> None:
    key = make_key(project=make_project(monthly_jobs=1))
    job = submit(key).json()
    key.client.delete(f"{JOBS}/{job['id']}")

    retried = key.client.post(f"{JOBS}/{job['id']}/retry")

    assert (retried.status_code, retried.json()["code"]) == (429, "month_used_up")


def test_files_are_stored_up_to_the_projects_limit() -> None:
    key = make_key(project=make_project(storage_bytes=1000))

    codes = [upload(key, 600).status_code, upload(key, 600).status_code, upload(key, 400).status_code]
    refused = upload(key, 1)

    assert codes == [201, 413, 201]
    body = refused.json()
    assert (body["code"], body["storage_bytes"], body["stored_bytes"]) == ("storage_full", 1000, 1000)
    assert InputFile.objects.count() == 2


def test_artifacts_count_and_what_is_deleted_does_not() -> None:
    key = make_key(project=make_project(storage_bytes=1000))
    job = Job.objects.get(id=upload(key, 300).json()["id"])
    make_artifact(job, "out.txt", b"b" * 701, "text/plain")
    Project.objects.update(stored_at=timezone.now() - timedelta(minutes=2))

    full = submit(key)
    Artifact.objects.all().delete()
    Project.objects.update(stored_at=timezone.now() - timedelta(minutes=2))
    free = submit(key)

    assert (full.status_code, free.status_code) == (413, 201)
