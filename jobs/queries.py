"""The SQL that workers run all day.

Claims are in `claiming.py`, the writes of running jobs in `batch.py`, their ends in `settlements.py`.

Invariants of docs/architecture.md, named here I1..I7: every transaction in which a worker writes for a job begins by
locking its own worker row (I3), every change of state writes its event in the same transaction (I2), and the clock is
the database's (I5). Functions are plain and synchronous; the worker calls them from its thread pool.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from jobs import failpoints, wakeups
from jobs.models import Job, Question, Worker

# A worker's losses in a row that a job survives, and from which on it runs alone (design: section 5).
MOST_LOSSES = 3
SUSPECT_LOSSES = 2


class WorkerLeaseLost(Exception):
    """This worker's lease has run out: another may own its jobs. Stop every program, write nothing, start afresh."""


# FOR KEY SHARE: many transactions of one worker hold it together and heartbeats pass (they change no key), but the
# sweep's FOR UPDATE waits for it. A write and a sweep of the same worker can therefore never interleave (I3).
LOCK_LEASE = """
SELECT 1 FROM jobs_worker WHERE id = %s AND lease_until > statement_timestamp() FOR KEY SHARE
"""


def plain_array(values: Iterable[UUID | int | str]) -> str:
    """PostgreSQL's array literal of values that need no quoting; the driver's own takes three times as long."""
    return "{" + ",".join(map(str, values)) + "}"


def lock_lease(cursor: CursorWrapper, worker_id: UUID) -> None:
    """First statement of every worker transaction. Raises WorkerLeaseLost."""
    cursor.execute(LOCK_LEASE, [worker_id])
    if cursor.fetchone() is None:
        raise WorkerLeaseLost


@dataclass(frozen=True)
class WorkerInfo:
    """How a worker introduces itself."""

    id: UUID
    host: str
    pid: int
    version: str
    queues: list[str]
    slots: int
    health: dict[str, Any] = field(default_factory=dict)


def register_worker(info: WorkerInfo) -> None:
    """Insert the worker's row with a fresh lease."""
    failpoints.hit("register.before")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO jobs_worker (id, host, pid, version, queues, slots, running, lease_until, can_run, health)
            VALUES (%s, %s, %s, %s, %s, %s, 0, statement_timestamp() + make_interval(secs => %s), false, %s)
            """,
            [
                info.id,
                info.host,
                info.pid,
                info.version,
                info.queues,
                info.slots,
                settings.ENGINE_LEASE_SECONDS,
                json.dumps(info.health),
            ],
        )
    failpoints.hit("register.after")


@dataclass(frozen=True)
class Beat:
    """What a heartbeat brought back."""

    database_time: datetime
    drain: bool
    held: dict[
        tuple[UUID, int], bool
    ]  # (job, attempt) running under this worker -> whether cancel is requested


def heartbeat(worker_id: UUID, *, running: int, can_run: bool, health: dict[str, Any]) -> Beat:
    """Renew the lease of one worker and so of all its jobs. Raises WorkerLeaseLost: a lease that ran out stays out."""
    failpoints.hit("heartbeat.before")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE jobs_worker
               SET heartbeat_at = statement_timestamp(), running = %s, can_run = %s, health = %s,
                   lease_until = statement_timestamp() + make_interval(secs => %s)
             WHERE id = %s AND lease_until > statement_timestamp() AND stopped_at IS NULL
            RETURNING statement_timestamp(), drain_requested_at IS NOT NULL
            """,
            [running, can_run, json.dumps(health), settings.ENGINE_LEASE_SECONDS, worker_id],
        )
        row = cursor.fetchone()
        if row is None:
            raise WorkerLeaseLost
        cursor.execute(
            "SELECT id, attempt, cancel_requested_at IS NOT NULL FROM jobs_job"
            " WHERE worker_id = %s AND status = 'running'",
            [worker_id],
        )
        held = {(job_id, attempt): cancel for job_id, attempt, cancel in cursor.fetchall()}
    failpoints.hit("heartbeat.after")
    return Beat(database_time=row[0], drain=row[1], held=held)


def stop_worker(worker_id: UUID) -> None:
    """Say goodbye: the lease ends now, so that whatever is left over is swept at once."""
    failpoints.hit("goodbye.before")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE jobs_worker
               SET stopped_at = statement_timestamp(), lease_until = least(lease_until, statement_timestamp()),
                   running = 0, can_run = false
             WHERE id = %s
            """,
            [worker_id],
        )
    failpoints.hit("goodbye.after")


@dataclass(frozen=True)
class Swept:
    """What one sweep did with the jobs of workers whose lease ran out."""

    requeued: tuple[UUID, ...] = ()
    ended: tuple[UUID, ...] = ()  # cancelled, or lost once too often
    sandboxes: tuple[str, ...] = ()  # what the lost attempts left behind
    queues: frozenset[str] = frozenset()


def sweep(*, workers: int = 5, jobs: int = 500, after_start: float | None = None) -> Swept:
    """Return the jobs of dead workers to the queue at their old place, each with an attempt marked lost.

    Waits `after_start` seconds (one lease) from the server's own start, so that an outage charges nobody.
    """
    quiet = settings.ENGINE_LEASE_SECONDS if after_start is None else after_start
    with failpoints.commit("sweep"), connection.cursor() as cursor:
        # The worker row is locked before its jobs: from here on none of its writes can begin (I3).
        cursor.execute(
            """
            SELECT id FROM jobs_worker AS worker
             WHERE lease_until <= statement_timestamp()
               AND (stopped_at IS NOT NULL
                    OR pg_postmaster_start_time() + make_interval(secs => %s) < statement_timestamp())
               AND EXISTS (SELECT 1 FROM jobs_job WHERE worker_id = worker.id AND status = 'running')
             LIMIT %s FOR UPDATE SKIP LOCKED
            """,
            [quiet, workers],
        )
        dead = [row[0] for row in cursor.fetchall()]
        if not dead:
            return Swept()
        parents = _lock_parents(cursor, "worker_id = ANY(%s) AND status = 'running'", [dead])
        cursor.execute(
            """
            WITH held AS MATERIALIZED (
                SELECT id FROM jobs_job WHERE worker_id = ANY(%(dead)s) AND status = 'running'
                 ORDER BY id LIMIT %(jobs)s FOR UPDATE SKIP LOCKED
            ), before AS (
                SELECT job.id, job.attempt, job.worker_id, job.attempt_started_at,
                       (SELECT max(seq) FROM jobs_event WHERE job_id = job.id) AS seen,
                       CASE WHEN job.cancel_requested_at IS NOT NULL THEN 'cancelled'
                            WHEN job.lost_count + 1 >= %(most)s THEN 'failed'
                            ELSE 'queued' END AS next
                  FROM jobs_job AS job JOIN held USING (id)
            ), done AS (
                UPDATE jobs_job AS job
                   SET status = before.next,
                       status_reason = CASE WHEN before.next = 'cancelled' THEN 'cancelled' ELSE 'worker_lost' END,
                       worker_id = NULL, lost_count = lost_count + 1, last_seq = before.seen + 1,
                       finished_at = CASE WHEN before.next = 'queued' THEN NULL ELSE statement_timestamp() END,
                       error = CASE WHEN before.next = 'failed' THEN jsonb_build_object(
                           'code', 'worker_lost',
                           'message', 'The job took down or outlived ' || %(most)s || ' workers in a row.',
                           'remedy', 'See the attempts for how each ended; lower its memory use or raise its limit,'
                                     ' then retry.') END
                  FROM before WHERE job.id = before.id
                RETURNING job.id, job.queue, before.attempt, before.worker_id AS holder, before.attempt_started_at,
                          before.next, job.last_seq
            ), told AS (
                INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
                SELECT id, last_seq, attempt, statement_timestamp(), 'job.' || next, 'system',
                       CASE WHEN next = 'failed' THEN 'error' ELSE 'warning' END,
                       'The worker that ran this job was lost.', jsonb_build_object('reason', 'worker_lost')
                  FROM done
            ), kept AS (
                INSERT INTO jobs_attempt (job_id, number, worker_id, sandbox, started_at, ended_at, outcome)
                SELECT id, attempt, holder, '', attempt_started_at, statement_timestamp(), 'lost' FROM done
                ON CONFLICT (job_id, number) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome
                RETURNING sandbox
            )
            SELECT id, next, queue, NULL FROM done UNION ALL SELECT NULL, NULL, NULL, sandbox FROM kept
            """,
            {"dead": dead, "jobs": jobs, "most": MOST_LOSSES},
        )
        rows = cursor.fetchall()
        requeue_if_free(cursor, parents)
    requeued = tuple(row[0] for row in rows if row[1] == "queued")
    return Swept(
        requeued=requeued,
        ended=tuple(row[0] for row in rows if row[0] and row[1] != "queued"),
        sandboxes=tuple(row[3] for row in rows if row[3]),
        queues=frozenset(row[2] for row in rows if row[1] == "queued"),
    )


# Which of several workers does the periodic work is of no matter, but two at once would only wait for each other.
PROMOTE_LOCK, EXPIRE_LOCK, PARTITION_LOCK = 7_301, 7_302, 7_303


def _alone(cursor: CursorWrapper, lock: int) -> bool:
    """Whether this transaction is the one that does this periodic work now."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [lock])
    return bool(cursor.fetchone()[0])


def promote(*, most: int = 500) -> frozenset[str]:
    """Queue scheduled jobs whose time has come; returns the queues that got some."""
    with failpoints.commit("promote"), connection.cursor() as cursor:
        if not _alone(cursor, PROMOTE_LOCK):
            return frozenset()
        cursor.execute(
            """
            WITH due AS MATERIALIZED (
                SELECT id FROM jobs_job WHERE status = 'scheduled' AND run_at <= statement_timestamp()
                 ORDER BY run_at LIMIT %s FOR UPDATE SKIP LOCKED
            ), done AS (
                UPDATE jobs_job AS job SET status = 'queued', status_reason = '', last_seq = last_seq + 1
                  FROM due WHERE job.id = due.id
                RETURNING job.id, job.queue, job.attempt, job.last_seq
            ), told AS (
                INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
                SELECT id, last_seq, attempt, statement_timestamp(), 'job.queued', 'system', 'info', '' FROM done
            )
            SELECT DISTINCT queue FROM done
            """,
            [most],
        )
        return frozenset(row[0] for row in cursor.fetchall())


def fail_overdue(*, most: int = 200) -> list[UUID]:
    """Fail jobs past their deadline that are not running (a running one is its lease holder's to end)."""
    with failpoints.commit("deadline"), connection.cursor() as cursor:
        if not _alone(cursor, EXPIRE_LOCK):
            return []
        overdue = "finished_at IS NULL AND deadline_at <= statement_timestamp() AND status <> 'running'"
        parents = _lock_parents(cursor, overdue, [])
        cursor.execute(
            """
            WITH due AS MATERIALIZED (
                SELECT id FROM jobs_job
                 WHERE finished_at IS NULL AND deadline_at <= statement_timestamp() AND status <> 'running'
                 ORDER BY deadline_at LIMIT %s FOR UPDATE SKIP LOCKED
            ), done AS (
                UPDATE jobs_job AS job
                   SET status = 'failed', status_reason = 'deadline', finished_at = statement_timestamp(),
                       last_seq = last_seq + 1,
                       error = jsonb_build_object('code', 'deadline',
                           'message', 'The job''s deadline passed before it could finish.',
                           'remedy', 'Submit it again with a later deadline or a higher priority.')
                  FROM due WHERE job.id = due.id
                RETURNING job.id, job.attempt, job.last_seq
            ), closed AS (
                UPDATE jobs_question AS question SET status = 'superseded'
                  FROM done WHERE question.job_id = done.id AND question.status = 'open'
            ), told AS (
                INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
                SELECT id, last_seq, attempt, statement_timestamp(), 'job.failed', 'system', 'error',
                       'The job''s deadline passed.', jsonb_build_object('reason', 'deadline')
                  FROM done
            )
            SELECT id FROM done
            """,
            [most],
        )
        failed = [row[0] for row in cursor.fetchall()]
        requeue_if_free(cursor, parents)
        return failed


def _lock_parents(cursor: CursorWrapper, ending: str, params: list[Any]) -> list[UUID]:
    """Lock the parents of jobs that are about to end, before these."""
    cursor.execute(
        f"""
        SELECT id FROM jobs_job
         WHERE id IN (SELECT parent_id FROM jobs_job WHERE {ending} AND parent_id IS NOT NULL)
         ORDER BY id FOR NO KEY UPDATE
        """,  # noqa: S608 (constants)
        params,
    )
    return [row[0] for row in cursor.fetchall()]


def due_questions(*, most: int = 200) -> list[tuple[UUID, UUID]]:
    """(job, question) of open questions past their time that asked for more than to go on waiting."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT job_id, id FROM jobs_question
             WHERE status = 'open' AND expires_at <= statement_timestamp() AND on_timeout <> 'wait'
             ORDER BY expires_at LIMIT %s
            """,
            [most],
        )
        return list(cursor.fetchall())


def due_reminders(*, most: int = 200) -> list[tuple[UUID, UUID]]:
    """(job, question) of open questions whose next reminder is due."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT job_id, id FROM jobs_question WHERE status = 'open' AND remind_at <= statement_timestamp()
             ORDER BY remind_at LIMIT %s
            """,
            [most],
        )
        return list(cursor.fetchall())


def append_event(
    cursor: CursorWrapper,
    job: Job,
    type: str,
    *,
    message: str = "",
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    """Number and store one event of a job that is not running. The caller holds the job's row lock (I6) and saves
    `last_seq` with the change of state that this event tells."""
    job.last_seq += 1
    cursor.execute(
        """
        INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
        VALUES (%s, %s, %s, statement_timestamp(), %s, 'system', %s, %s, %s)
        """,
        [job.id, job.last_seq, job.attempt, type, level, message, None if data is None else json.dumps(data)],
    )


def supersede_questions(cursor: CursorWrapper, job_id: UUID) -> None:
    """Close what a job that ends still asked."""
    cursor.execute(
        "UPDATE jobs_question SET status = %s WHERE job_id = %s AND status = 'open'",
        [Question.Status.SUPERSEDED, job_id],
    )


def requeue_if_free(cursor: CursorWrapper, job_ids: Collection[UUID]) -> None:
    """Queue those of these waiting jobs that wait for nothing any more: no open question, no child at work.

    They keep their place. The caller holds their row locks, taken before those of their children: of two ends at once
    the second one then sees the first.
    """
    if not job_ids:
        return
    cursor.execute(
        """
        WITH done AS (
            UPDATE jobs_job AS job
               SET status = 'queued', last_seq = last_seq + 1,
                   status_reason = CASE status_reason WHEN 'child_job' THEN 'child_ended' ELSE 'answered' END
             WHERE id = ANY(%s) AND status = 'waiting_for_input' AND status_reason IN ('question', 'child_job')
               AND NOT EXISTS (SELECT 1 FROM jobs_question WHERE job_id = job.id AND status = 'open')
               AND NOT EXISTS (SELECT 1 FROM jobs_job WHERE parent_id = job.id AND finished_at IS NULL)
            RETURNING id, attempt, last_seq, queue, status_reason
        ), told AS (
            INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
            SELECT id, last_seq, attempt, statement_timestamp(), 'job.queued', 'system', 'info', '',
                   jsonb_build_object('reason', status_reason)
              FROM done
        )
        SELECT id, queue FROM done
        """,
        [list(job_ids)],
    )
    rows = cursor.fetchall()
    if rows:
        wakeups.jobs_changed(*(row[0] for row in rows))
        wakeups.queues_filled(*{row[1] for row in rows})


def ensure_partitions(*, weeks_ahead: int = 2) -> list[str]:
    """Make the event partitions of this week and the coming ones; returns those it made.

    Partitioned by range of the UUIDv7 job id, whose first 48 bits are milliseconds since 1970 (RFC 9562, 5.7). A
    default partition takes what falls outside.
    """
    with failpoints.commit("partitions"), connection.cursor() as cursor:
        if not _alone(cursor, PARTITION_LOCK):
            return []
        cursor.execute("SELECT extract(epoch FROM date_trunc('week', statement_timestamp()))::bigint")
        monday = cursor.fetchone()[0]
        return [
            name
            for week in range(weeks_ahead + 1)
            if (name := _make_partition(cursor, monday + week * WEEK_SECONDS))
        ]


WEEK_SECONDS = 7 * 24 * 3600


def _make_partition(cursor: CursorWrapper, start: int) -> str:
    """Make the partition of one week unless it stands; its name, or '' if there was nothing to do."""
    cursor.execute("SELECT to_char(to_timestamp(%s) AT TIME ZONE 'UTC', 'IYYY_\"w\"IW')", [start])
    name = f"jobs_event_{cursor.fetchone()[0]}"
    low, high = first_id(start), first_id(start + WEEK_SECONDS)
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name])
    if cursor.fetchone()[0]:
        return ""
    # Rows that came before their partition lie in the default one; it would refuse the new bounds. They stay there.
    cursor.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs_event_default WHERE job_id >= %s AND job_id < %s)", [low, high]
    )
    if cursor.fetchone()[0]:
        return ""
    cursor.execute(
        f"CREATE TABLE \"{name}\" PARTITION OF jobs_event FOR VALUES FROM ('{low}') TO ('{high}')"
        " WITH (fillfactor = 100, autovacuum_vacuum_insert_scale_factor = 0.1)"
    )
    return name


def first_id(seconds: int) -> UUID:
    """The smallest UUIDv7 of that second."""
    return UUID(int=(seconds * 1000) << 80)


def lease_state(workers: Sequence[Worker]) -> dict[UUID, bool]:
    """Which of these workers hold their lease now, by the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, lease_until > statement_timestamp() AND stopped_at IS NULL FROM jobs_worker WHERE id = ANY(%s)",
            [[worker.id for worker in workers]],
        )
        return dict(cursor.fetchall())
