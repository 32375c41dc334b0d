"""Which queued jobs a worker gets: order, fair share between projects, limits, pauses.

One queue a call: with `queue = ANY(...)` PostgreSQL sorts every due row. There are two claims. The ordered one serves
a queue that one project fills: strictly by `sort_at`. The fair one serves several projects, or one with a limit: by
turns, weighted, each project in its own order. Both lock what they take with SKIP LOCKED, so that workers pass each
other instead of waiting in line.

Claims stay cheap beside a session that holds an old snapshot (dead rows cannot be vacuumed then): a new job's `sort_at`
is never far behind its class's youngest, so a scan may begin at a floor. Jobs that come back keep an old `sort_at`;
they have a small index and a scan of their own without a floor. Sorting is off while these plans are made: with few
jobs queued the planner would rather read another index whole, dead rows and all, and sort what it found.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from jobs import failpoints
from jobs.models import Job
from jobs.queries import SUSPECT_LOSSES, lock_lease

# A job becomes visible at its commit, mostly this soon after its sort_at; the next survey finds those that took longer.
COMMIT_SECONDS = 1


class Claimed(NamedTuple):
    """A job as its new lease holder gets it. `last_seq` counts the `job.started` event of this claim."""

    id: UUID
    project_id: UUID
    agent_version_id: UUID
    queue: str
    task: str
    input: dict[str, Any]
    attempt: int
    last_seq: int
    failed_count: int
    lost_count: int
    max_attempts: int
    timeout_seconds: int | None
    deadline_at: datetime | None
    parent_id: UUID | None
    budget: dict[str, Any] | None
    seed: str  # of a job that continues another
    traceparent: str
    due_at: float  # seconds since 1970, by the database's clock
    started_at: float


CLAIMED_COLUMNS = """
    id, project_id, agent_version_id, queue, task, input, attempt, last_seq, failed_count, lost_count, max_attempts,
    timeout_seconds, deadline_at, parent_id, budget, seed, traceparent,
    extract(epoch FROM greatest(created_at, run_at))::float8, extract(epoch FROM attempt_started_at)::float8
"""

# For this transaction. The planner may still sort, where there is no other way.
IN_INDEX_ORDER = "set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true)"

# `due` is MATERIALIZED as a fence: without it a LIMIT subquery may lock or update more rows than it returns. An array,
# not a join: the planner takes `due` for large, and would hash the whole table for it.
TAKE = f"""
, taken AS (
    UPDATE jobs_job AS job
       SET status = 'running', status_reason = '', attempt = attempt + 1, worker_id = %(worker_id)s,
           last_seq = last_seq + 1, attempt_started_at = statement_timestamp(),
           started_at = coalesce(started_at, statement_timestamp())
     WHERE id = ANY(ARRAY(SELECT id FROM due))
    RETURNING job.*
), told AS (
    INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
    SELECT id, last_seq, attempt, attempt_started_at, 'job.started', 'system', 'info', '',
           jsonb_build_object('worker', %(worker_id)s::text)
      FROM taken
)
SELECT {CLAIMED_COLUMNS} FROM taken
"""  # noqa: S608

# Every scan below asks for this, and for what its index is partial on.
OPEN = """
status = 'queued' AND queue = %(queue)s AND lost_count < %(suspect_losses)s
           AND agent_version_id <> ALL(%(paused)s::uuid[])
"""

# First the heads of each class are merged, unlocked, to see how many of each come first; then so many of each are
# locked. A row that another worker holds is passed, and the next of its class taken.
CLAIM_ORDERED = f"""
WITH class AS (
    SELECT * FROM unnest(%(priorities)s::text[], %(floors)s::timestamptz[]) AS class(priority, floor)
), heads AS (
    SELECT class.priority, job.sort_at, job.id FROM class CROSS JOIN LATERAL (
        SELECT id, sort_at FROM jobs_job
         WHERE {OPEN} AND attempt = 0 AND priority = class.priority AND sort_at >= class.floor
         ORDER BY sort_at, id LIMIT %(limit)s) AS job
    UNION ALL
    (SELECT 'back', sort_at, id FROM jobs_job WHERE {OPEN} AND attempt > 0 ORDER BY sort_at, id LIMIT %(limit)s)
), wanted AS (
    SELECT priority, count(*) AS number, min(sort_at) AS floor
      FROM (SELECT priority, sort_at FROM heads ORDER BY sort_at, id LIMIT %(limit)s) AS first GROUP BY priority
), due AS MATERIALIZED (
    SELECT job.id FROM wanted CROSS JOIN LATERAL (
        SELECT id FROM jobs_job
         WHERE {OPEN} AND attempt = 0 AND priority = wanted.priority AND sort_at >= wanted.floor
         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS job
    UNION ALL
    SELECT job.id FROM wanted CROSS JOIN LATERAL (
        SELECT id FROM jobs_job WHERE {OPEN} AND attempt > 0 AND sort_at >= wanted.floor
         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS job
     WHERE wanted.priority = 'back'
) {TAKE}
"""  # noqa: S608

# A project's next turn comes the later the more of its jobs run, divided by its weight.
CLAIM_FAIR = f"""
WITH share AS MATERIALIZED (
    SELECT project.id, project.weight, running.number AS running,
           greatest(0, least(%(limit)s, coalesce(project.max_running - running.number, %(limit)s))) AS room
      FROM apikeys_project AS project
     CROSS JOIN LATERAL (SELECT count(*) AS number FROM jobs_job
                          WHERE project_id = project.id AND status = 'running') AS running
     WHERE project.id = ANY(%(projects)s::uuid[])
), heads AS (
    SELECT share.id AS project_id, job.sort_at, job.id,
           (share.running + row_number() OVER (PARTITION BY share.id ORDER BY job.sort_at, job.id))::float8
               / share.weight AS turn
      FROM share CROSS JOIN LATERAL (
        SELECT id, sort_at FROM jobs_job WHERE {OPEN} AND project_id = share.id
         ORDER BY sort_at, id LIMIT share.room) AS job
), wanted AS (
    SELECT project_id, count(*) AS number
      FROM (SELECT project_id FROM heads ORDER BY turn, sort_at, id LIMIT %(limit)s) AS first GROUP BY project_id
), due AS MATERIALIZED (
    SELECT job.id FROM wanted CROSS JOIN LATERAL (
        SELECT id FROM jobs_job WHERE {OPEN} AND project_id = wanted.project_id
         ORDER BY sort_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS job
) {TAKE}
"""  # noqa: S608

CLAIM_SUSPECT = f"""
WITH due AS MATERIALIZED (
    SELECT id FROM jobs_job
     WHERE status = 'queued' AND queue = %(queue)s AND lost_count >= %(suspect_losses)s
       AND agent_version_id <> ALL(%(paused)s::uuid[])
     ORDER BY sort_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) {TAKE}
"""  # noqa: S608


@contextmanager
def _in_index_order() -> Iterator[CursorWrapper]:
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        cursor.execute(f"SELECT {IN_INDEX_ORDER}")
        yield cursor


@dataclass(frozen=True)
class Survey:
    """What a queue looked like a moment ago. Only a hint where it is cheap to be wrong; limits are read anew."""

    floors: dict[str, datetime]  # per priority: no unclaimed new job sorts before it
    projects: tuple[UUID, ...]  # those with queued jobs
    took_seconds: float = 0.0
    at: float = field(default_factory=time.monotonic)


def survey(queue: str) -> Survey:
    """Look at a queue: where claims may begin, and who waits."""
    started = time.perf_counter()
    with _in_index_order() as cursor:
        cursor.execute(
            """
            SELECT class.priority, least(
                       (SELECT min(sort_at) FROM jobs_job
                         WHERE status = 'queued' AND attempt = 0 AND queue = %(queue)s AND priority = class.priority),
                       statement_timestamp() - make_interval(secs => class.credit + %(commit)s))
              FROM unnest(%(priorities)s::text[], %(credits)s::float8[]) AS class(priority, credit)
            """,
            {
                "queue": queue,
                "priorities": list(Job.CREDIT_SECONDS),
                "credits": list(Job.CREDIT_SECONDS.values()),
                "commit": COMMIT_SECONDS,
            },
        )
        floors = dict(cursor.fetchall())
        cursor.execute(
            # From one project to the next through job_share_idx, instead of reading every queued row.
            """
            WITH RECURSIVE waiting AS (
                (SELECT project_id FROM jobs_job WHERE status = 'queued' AND queue = %(queue)s
                  ORDER BY project_id, sort_at, id LIMIT 1)
                UNION ALL
                SELECT (SELECT project_id FROM jobs_job
                         WHERE status = 'queued' AND queue = %(queue)s AND project_id > waiting.project_id
                         ORDER BY project_id, sort_at, id LIMIT 1)
                  FROM waiting WHERE waiting.project_id IS NOT NULL
            )
            SELECT project_id FROM waiting WHERE project_id IS NOT NULL
            """,
            {"queue": queue},
        )
        projects = tuple(row[0] for row in cursor.fetchall())
    return Survey(floors=floors, projects=projects, took_seconds=time.perf_counter() - started)


def claim(
    worker_id: UUID, *, queue: str, limit: int, seen: Survey | None = None, suspects: bool = False
) -> list[Claimed]:
    """Take up to `limit` due jobs of one queue; the list itself is unordered.

    `seen` is a recent survey; without one the queue is looked at first. `suspects` takes jobs that were lost twice in a
    row instead: they may be what kills workers, so they run alone. Raises WorkerLeaseLost.
    """
    seen = seen or survey(queue)
    with failpoints.commit("claim"), connection.cursor() as cursor:
        lock_lease(cursor, worker_id)
        paused = _paused(cursor, queue)
        if paused is None:
            return []
        params: dict[str, Any] = {
            "worker_id": worker_id,
            "queue": queue,
            "limit": limit,
            "suspect_losses": SUSPECT_LOSSES,
            "paused": paused,
            "priorities": list(seen.floors),
            "floors": list(seen.floors.values()),
        }
        if suspects:
            cursor.execute(CLAIM_SUSPECT, params)
        else:
            limited = _lock_limited(cursor, queue)
            projects = set(seen.projects) | limited
            fair = len(projects) > 1 or bool(limited)
            cursor.execute(CLAIM_FAIR if fair else CLAIM_ORDERED, {**params, "projects": list(projects)})
        return [_claimed(row) for row in cursor.fetchall()]


def _paused(cursor: CursorWrapper, queue: str) -> list[UUID] | None:
    """The agent versions that get no work now, or None where the whole queue is paused; and no sorting from here on."""
    cursor.execute(
        f"""
        SELECT {IN_INDEX_ORDER}, EXISTS (SELECT 1 FROM jobs_queue WHERE name = %s AND paused_at IS NOT NULL),
               ARRAY(SELECT version.id FROM agents_agentversion AS version
                       JOIN jobs_pausedagent AS paused USING (agent_id))
        """,  # noqa: S608 (a constant)
        [queue],
    )
    *_, whole, versions = cursor.fetchone()
    return None if whole else versions


def _lock_limited(cursor: CursorWrapper, queue: str) -> set[UUID]:
    """Projects with `max_running` that have work here, locked: their running jobs are counted by one claim at a time.

    A statement of its own, so that the count which follows sees what the last holder of the lock committed.
    """
    cursor.execute(
        """
        SELECT project.id FROM apikeys_project AS project CROSS JOIN LATERAL (
            SELECT FROM jobs_job WHERE status = 'queued' AND queue = %s AND project_id = project.id
             ORDER BY sort_at, id LIMIT 1) AS job
         WHERE max_running IS NOT NULL ORDER BY project.id FOR NO KEY UPDATE OF project
        """,
        [queue],
    )
    return {row[0] for row in cursor.fetchall()}


# Steps from one queue name to the next through job_share_idx, instead of reading every queued row.
DUE_QUEUES = """
WITH RECURSIVE names AS (
    (SELECT queue FROM jobs_job WHERE status = 'queued' ORDER BY queue, project_id, sort_at, id LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM jobs_job WHERE status = 'queued' AND queue > names.queue
             ORDER BY queue, project_id, sort_at, id LIMIT 1)
      FROM names WHERE names.queue IS NOT NULL
)
SELECT queue FROM names WHERE queue IS NOT NULL
"""


def survey_all(queues: Sequence[str] | None) -> tuple[dict[str, Survey], set[str]]:
    """Surveys of these queues (None: of all that hold jobs), and those in which a job waits to run alone."""
    with _in_index_order() as cursor:
        if queues is None:
            cursor.execute(DUE_QUEUES)
            queues = [row[0] for row in cursor.fetchall()]
        cursor.execute(
            """
            SELECT DISTINCT queue FROM jobs_job AS job
             WHERE status = 'queued' AND lost_count >= %s AND queue = ANY(%s)
               AND NOT EXISTS (SELECT 1 FROM jobs_queue WHERE name = job.queue AND paused_at IS NOT NULL)
               AND NOT EXISTS (SELECT 1 FROM agents_agentversion AS version JOIN jobs_pausedagent USING (agent_id)
                                WHERE version.id = job.agent_version_id)
            """,
            [SUSPECT_LOSSES, list(queues)],
        )
        suspects = {row[0] for row in cursor.fetchall()}
        return {queue: survey(queue) for queue in queues}, suspects


def claimed_again(worker_id: UUID, job_id: UUID, attempt: int) -> Claimed | None:
    """What an earlier claim took, for a worker that does not run it. None if it holds the job no more."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {CLAIMED_COLUMNS} FROM jobs_job"  # noqa: S608 (a constant)
            " WHERE id = %s AND attempt = %s AND worker_id = %s AND status = 'running'",
            [job_id, attempt, worker_id],
        )
        row = cursor.fetchone()
        if row is None:
            return None
        cursor.execute("SELECT max(seq) FROM jobs_event WHERE job_id = %s", [job_id])
        return _claimed(row)._replace(last_seq=cursor.fetchone()[0])


def _claimed(row: tuple[Any, ...]) -> Claimed:
    """Raw cursors give jsonb as text (Django turns psycopg's own loader off)."""
    job = Claimed._make(row)
    return job._replace(
        input={} if row[5] == "{}" else json.loads(row[5]), budget=row[14] and json.loads(row[14])
    )
