"""Artifacts and uploads in a bucket, over HTTP; a bucket that is down, slow, full or locked costs no job and no 500."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from django.core.files.storage import storages
from django.core.files.uploadedfile import SimpleUploadedFile

from engine import diagnosis
from jobs import s3, storage
from jobs.models import InputFile, Job
from tests.buckets import BUCKET, BucketServer, bucket_server, storages_in
from tests.factories import KeyInHand, make_key
from tests.jobs import make_job
from tests.test_jobs_api_artifacts import CONTENT, body, make_artifact

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with bucket_server() as started:
        httpx.get(started.url, timeout=60)  # moto's first answer takes its time
        yield started


@pytest.fixture(autouse=True)
def bucket(server: BucketServer, settings: Any, monkeypatch: pytest.MonkeyPatch) -> BucketServer:
    """An empty bucket that works, with deadlines that a test can wait for."""
    server.fault, server.faults_left = "", -1
    server.release.clear()
    settings.ENGINE_S3_REQUEST_SECONDS = settings.ENGINE_S3_WORKER_SECONDS = 2.0
    monkeypatch.setattr(s3, "TRIES", 1)
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    settings.STORAGES = {**settings.STORAGES, "artifacts": storages_in(server.url)}
    boto = client()
    boto.create_bucket(Bucket=BUCKET)
    for item in boto.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        boto.delete_object(Bucket=BUCKET, Key=item["Key"])
    return server


def client() -> Any:
    """boto3's client."""
    artifacts: Any = storages["artifacts"]
    return artifacts.connection.meta.client


@pytest.fixture
def key() -> KeyInHand:
    return make_key("jobs:read", "jobs:write")


def stored(content: bytes = CONTENT) -> storage.Blob:
    async def blocks() -> AsyncIterator[bytes]:
        yield content

    return asyncio.run(storage.store(blocks(), folder="project/job", most_bytes=10**8))


def test_bytes_go_into_the_bucket_once_and_come_back(bucket: BucketServer):
    blob = stored()
    writes = bucket.writes
    again = stored()

    assert (again, bucket.writes) == (blob, writes)
    assert blob.key == f"project/job/{hashlib.sha256(CONTENT).hexdigest()}"
    with storage.local_file(blob.key) as path:
        assert path.read_bytes() == CONTENT
    storage.delete([blob.key, "project/job/never-there"])
    with pytest.raises(storage.BlobMissing), storage.local_file(blob.key):
        pass


def test_downloads_stream_whole_and_in_part(key: KeyInHand):
    address = make_artifact(make_job(key.project))

    whole = key.client.get(address)
    part = key.client.get(address, headers={"Range": "bytes=10-19"})

    assert body(whole) == CONTENT
    assert (part.status_code, body(part)) == (206, CONTENT[10:20])


def test_a_file_that_is_gone_is_a_404(key: KeyInHand):
    address = make_artifact(make_job(key.project))
    storage.delete([f"{folder}" for folder in _keys()])

    assert key.client.get(address).json()["code"] == "artifact_not_found"


def _keys() -> list[str]:
    listed = client().list_objects_v2(Bucket=BUCKET)
    return [item["Key"].removeprefix("files/") for item in listed.get("Contents", [])]


@pytest.mark.parametrize("fault", ["full", "broken", "slow"])
def test_what_a_worker_stores_is_tried_again(bucket: BucketServer, fault: str):
    bucket.fault, bucket.faults_left = fault, 1

    assert stored().size == len(CONTENT)
    assert bucket.faults_left == 0


@pytest.mark.parametrize("fault", ["full", "broken", "slow", "down", "locked", "no bucket"])
def test_a_bucket_in_trouble_is_said_and_never_a_500(
    bucket: BucketServer, settings: Any, key: KeyInHand, fault: str
):
    address = make_artifact(make_job(key.project))
    damage(bucket, settings, fault)
    upload = SimpleUploadedFile("reviews.csv", b"a,b\n1,2\n")

    posted = key.client.post("/api/v1/jobs", {"task": "Count", "files": upload}, format="multipart")
    answered = key.client.get(address)
    found = diagnosis.storage("artifacts")
    with pytest.raises(storage.StorageFailed):
        stored(b"other bytes")

    assert (posted.status_code, posted.json()["code"]) == (503, "storage_unavailable")
    assert int(posted["Retry-After"]) > 0
    assert Job.objects.filter(task="Count").count() == InputFile.objects.count() == 0
    if fault == "full":  # what lies there can still be read
        assert body(answered) == CONTENT
    elif fault == "no bucket":
        assert answered.status_code in (404, 503)
    else:
        assert (answered.status_code, answered.json()["code"]) == (503, "storage_unavailable")
    assert not found.ok
    assert "ENGINE_S3" in found.remedy


def test_a_request_waits_for_a_silent_bucket_a_few_seconds_and_a_worker_longer(
    bucket: BucketServer, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(s3, "TRIES", 2)
    settings.ENGINE_S3_REQUEST_SECONDS, settings.ENGINE_S3_WORKER_SECONDS = 4.0, 20.0

    def deadlines() -> tuple[float, float]:
        settings.STORAGES = {**settings.STORAGES, "artifacts": storages_in(bucket.url)}  # made anew
        config = client().meta.config
        return config.connect_timeout, config.read_timeout

    request = deadlines()
    monkeypatch.setattr(s3, "patient", True)
    worker = deadlines()

    assert (request, worker) == ((2.0, 2.0), (2.0, 10.0))


def damage(bucket: BucketServer, settings: Any, fault: str) -> None:
    wrong = {
        "down": storages_in("http://127.0.0.1:9"),
        "locked": storages_in(bucket.url, key="wrong"),
        "no bucket": storages_in(bucket.url, bucket="another-bucket"),
    }
    if fault in wrong:
        settings.STORAGES = {**settings.STORAGES, "artifacts": wrong[fault]}
    else:
        bucket.fault = fault
