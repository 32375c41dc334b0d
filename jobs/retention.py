"""Forgetting: finished jobs of a certain age with their files, and the event partitions that only held such jobs."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from django.db import OperationalError, connection

from jobs import buckets, failpoints, storage, usage
from jobs.models import Job
from jobs.queries import WEEK_SECONDS, first_id

log = logging.getLogger("engine.retention")

# Small batches: each is one short transaction, and no reader ever waits for it.
BATCH = 200
# Dropping a partition needs a moment alone with the events table. Whoever comes while it waits for that waits behind
# it, so it waits only so long, gives up, and tries again a little later.
LOCK_MILLISECONDS = 50
DROP_TRIES = 5
DROP_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Pruned:
    """What was forgotten."""

    jobs: int
    files: int
    partitions: tuple[str, ...]


def prune(days: int, *, tell: Callable[[int], None] = lambda jobs: None) -> Pruned:
    """Forget final jobs that ended more than `days` days ago. `tell` hears the number of jobs after each batch.

    A job that another one continues stays until that one is forgotten: they share files. Safe to run anywhere, any
    number of times, beside workers and readers; a crash in the middle leaves nothing half.
    """
    jobs = files = 0
    while True:
        forgotten, deleted = _forget_some(days)
        if not forgotten:
            usage.forget()
            buckets.forget()
            return Pruned(jobs, files, tuple(_drop_partitions()))
        jobs, files = jobs + forgotten, files + deleted
        tell(jobs)


@failpoints.commit("forget")
def _forget_some(days: int) -> tuple[int, int]:
    """Forget a batch; how many jobs and files went. Files first: if this is cut, the rows still say what is left."""
    with connection.cursor() as cursor:
        # Locked, so that nobody continues a job whose files are going, and two that prune share the work.
        cursor.execute(
            """
            SELECT id FROM jobs_job AS job
             WHERE finished_at < statement_timestamp() - make_interval(days => %s)
               AND NOT EXISTS (SELECT 1 FROM jobs_job WHERE retried_from_id = job.id)
               AND NOT EXISTS (SELECT 1 FROM jobs_job WHERE parent_id = job.id)
             ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED
            """,
            [days, BATCH],
        )
        jobs = [row[0] for row in cursor.fetchall()]
        keys = _own_files(jobs)
        storage.delete(keys)
        for table in ("delivery", "artifact", "inputfile", "question", "step", "attempt", "event"):
            cursor.execute(f"DELETE FROM jobs_{table} WHERE job_id = ANY(%s)", [jobs])  # noqa: S608
        cursor.execute("DELETE FROM jobs_job WHERE id = ANY(%s)", [jobs])
    return len(jobs), len(keys)


def _own_files(jobs: list[UUID]) -> list[str]:
    """Storage keys below these jobs' own folders; what a continued job shares belongs to the older one."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH used AS (
                SELECT job_id, storage_key FROM jobs_artifact WHERE job_id = ANY(%(jobs)s)
                UNION SELECT job_id, storage_key FROM jobs_inputfile WHERE job_id = ANY(%(jobs)s)
                UNION SELECT job_id, file ->> 'storage_key' FROM jobs_step, jsonb_array_elements(files) AS file
                       WHERE job_id = ANY(%(jobs)s)
            )
            SELECT DISTINCT storage_key FROM used WHERE position(job_id::text IN storage_key) > 0
            """,
            {"jobs": jobs},
        )
        return [row[0] for row in cursor.fetchall()]


def _drop_partitions() -> list[str]:
    """Drop past weeks in which no job is left."""
    dropped = []
    for name, start in _past_weeks():
        low, high = first_id(start), first_id(start + WEEK_SECONDS)
        if Job.objects.filter(id__gte=low, id__lt=high).exists():
            continue
        if _drop(name):
            dropped.append(name)
        else:
            log.info("Events partition %s is in use; it is dropped another time.", name)
    return dropped


def _drop(name: str) -> bool:
    """Drop a partition unless it is in use. (DETACH … CONCURRENTLY is refused beside a default partition.)"""
    for left in reversed(range(DROP_TRIES)):
        try:
            with failpoints.commit("drop_week"), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
                cursor.execute(f'DROP TABLE IF EXISTS "{name}"')
        except OperationalError:
            connection.close_if_unusable_or_obsolete()
            if left:
                time.sleep(DROP_PAUSE_SECONDS)
        else:
            return True
    return False


def _past_weeks() -> list[tuple[str, int]]:
    """Event partitions whose week, and the one after it, are over: (name, first second)."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT child.relname, extract(epoch FROM to_date(right(child.relname, 8), 'IYYY_"w"IW'))::bigint
              FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
             WHERE inhparent = 'jobs_event'::regclass AND child.relname ~ '^jobs_event_[0-9]{4}_w[0-9]{2}$'
            """
        )
        weeks = cursor.fetchall()
        cursor.execute("SELECT extract(epoch FROM statement_timestamp())::bigint")
        now = cursor.fetchone()[0]
    return [(name, start) for name, start in weeks if start + 2 * WEEK_SECONDS < now]
