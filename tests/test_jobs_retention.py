"""Forgetting old jobs: what goes, what stays."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import connection, transaction
from django.utils import timezone
from uuid_utils.compat import uuid7

from engine.database import direct_dsn
from jobs import continuing, queries, retention
from jobs.models import Artifact, Attempt, Event, Job, Step
from tests.jobs import claim_one, make_caller, make_job, make_worker, settlement, step_row, write

pytestmark = pytest.mark.django_db(transaction=True)


def ended(*, days_ago: int, status: Job.Status = Job.Status.COMPLETED) -> Job:
    """A job with an artifact that ended so long ago."""
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    write(worker_id, steps=[step_row(job, "load#1", ended=True)])
    key = storages["artifacts"].save(f"{job.project_id}/{job.id}/chart.png", ContentFile(b"chart"))
    Artifact.objects.create(
        job_id=job.id, project_id=job.project_id, attempt=1, name="chart.png", media_type="image/png", size=5,
        sha256="0" * 64, storage_key=key,
    )  # fmt: skip
    outcome = Attempt.Outcome.COMPLETED if status == Job.Status.COMPLETED else Attempt.Outcome.FAILED
    write(worker_id, settlements=[settlement(job, status, outcome, result="1")])
    with (
        connection.cursor() as cursor
    ):  # time is moved by changing rows; the guard of final rows steps aside for it
        cursor.execute("ALTER TABLE jobs_job DISABLE TRIGGER job_final_stays")
        then = timezone.now() - timedelta(days=days_ago)
        cursor.execute("UPDATE jobs_job SET finished_at = %s WHERE id = %s", [then, job.id])
        cursor.execute("ALTER TABLE jobs_job ENABLE TRIGGER job_final_stays")
    return Job.objects.get(id=job.id)


def test_old_jobs_go_with_their_files_and_young_and_unfinished_ones_stay() -> None:
    old, young, queued = ended(days_ago=40), ended(days_ago=3), make_job()
    file = Artifact.objects.get(job=old).storage_key

    pruned = retention.prune(30)

    assert (pruned.jobs, pruned.files) == (1, 1)
    assert set(Job.objects.values_list("id", flat=True)) == {young.id, queued.id}
    for rows in (Event, Step, Attempt, Artifact):
        assert not rows.objects.filter(job_id=old.id).exists()
    assert not storages["artifacts"].exists(file)
    assert storages["artifacts"].exists(Artifact.objects.get(job=young).storage_key)


def test_a_job_that_another_continues_stays_until_that_one_is_forgotten() -> None:
    old = ended(days_ago=40, status=Job.Status.FAILED)
    new = continuing.retry(old.id, by=make_caller())

    assert retention.prune(30).jobs == 0

    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM jobs_job WHERE id = %s", [new.id])
    assert retention.prune(30).jobs == 1


def in_a_session_of_its_own(pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
    def run() -> Any:
        try:
            return work()
        finally:
            connection.close()

    return pool.submit(run)


def test_a_job_that_somebody_is_about_to_continue_is_passed() -> None:
    old = ended(days_ago=40, status=Job.Status.FAILED)
    file = Artifact.objects.get(job=old).storage_key

    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        continuing.retry(old.id, by=make_caller())  # not committed yet
        pruned = in_a_session_of_its_own(pool, lambda: retention.prune(30)).result()

    assert pruned.jobs == 0
    assert storages["artifacts"].exists(file)


def test_two_that_prune_together_share_the_work() -> None:
    jobs = [ended(days_ago=40) for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        pruning = [in_a_session_of_its_own(pool, lambda: retention.prune(30)) for _ in range(2)]

    assert sum(one.result().jobs for one in pruning) == len(jobs)
    assert not Job.objects.exists()


def old_week() -> str:
    """The name of a new partition for a week two months ago."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM date_trunc('week', now() - interval '60 days'))::bigint")
        return queries._make_partition(cursor, cursor.fetchone()[0])


def test_readers_of_events_never_wait_for_a_week_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    name, waited = old_week(), []
    monkeypatch.setattr(retention, "DROP_PAUSE_SECONDS", 0.1)

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            list(Event.objects.all())  # a slow reader: it holds the table until its transaction ends
            pruning = in_a_session_of_its_own(pool, lambda: retention.prune(30))
            with psycopg.connect(direct_dsn(), autocommit=True) as other:
                while not pruning.done():
                    began = time.monotonic()
                    other.execute("SELECT count(*) FROM jobs_event").fetchone()
                    waited.append(time.monotonic() - began)
        assert pruning.result().partitions == ()

    assert len(waited) > retention.DROP_TRIES
    # Each try holds up one reader for as long as it waits itself.
    assert sorted(waited)[-retention.DROP_TRIES - 1] < retention.LOCK_MILLISECONDS / 1000
    assert retention.prune(30).partitions == (name,)


def test_past_weeks_of_events_are_dropped_once_no_job_is_left_in_them() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM date_trunc('week', now() - interval '60 days'))::bigint")
        start = cursor.fetchone()[0]
        name = queries._make_partition(cursor, start)
    inside = UUID(int=queries.first_id(start + 3600).int | (uuid7().int & ((1 << 76) - 1)))
    job = make_job()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE jobs_job SET id = %s WHERE id = %s", [inside, job.id])

    assert retention.prune(30).partitions == ()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM jobs_job WHERE id = %s", [inside])
    assert retention.prune(30).partitions == (name,)
