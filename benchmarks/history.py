"""Many finished jobs at once, by INSERT … SELECT: what an installation has after months."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db import connection

from jobs import buckets

JOBS = """
WITH made AS (
INSERT INTO jobs_job (id, project_id, agent_version_id, queue, task, input, status, status_reason, priority, sort_at,
                      attempt, failed_count, lost_count, max_attempts, last_seq, cancel_requested_by, tags, metadata,
                      webhook_url, progress_message, created_by, created_at, started_at, finished_at, error)
SELECT (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
        || substr(md5(n::text), 4, 15))::uuid,
       (%(projects)s::uuid[])[1 + n %% array_length(%(projects)s::uuid[], 1)],
       (%(versions)s::uuid[])[1 + n %% array_length(%(versions)s::uuid[], 1)],
       'default', 'Count the words of report ' || n, '{}',
       CASE WHEN n %% 5 = 0 THEN 'failed' ELSE 'completed' END, '',
       'normal', t, 1, 0, 0, 3, %(events)s, '', '{}', '{}', '', '', 'key:nightly', t, t, t + interval '3 s',
       CASE WHEN n %% 5 = 0 THEN '{"code": "agent_failed", "message": "It broke"}'::jsonb END
  FROM generate_series(%(first)s::int, %(last)s::int) AS n,
       LATERAL (SELECT statement_timestamp() - n * interval '2 s' AS t) AS times
RETURNING id, created_at
)
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
SELECT id, seq, 1, created_at + seq * interval '10 ms', 'log', 'stdout', 'info', 'line ' || seq || ' of a report'
  FROM made CROSS JOIN generate_series(1, %(events)s) AS seq
"""

MINUTES = """
INSERT INTO jobs_minutestat (minute, project_id, agent_id, queue, outcome, error_code, count, wait_ms, run_ms,
                             wait_histogram, run_histogram)
SELECT date_trunc('minute', finished_at), project_id, NULL, queue, status, coalesce(error ->> 'code', ''), count(*),
       count(*) * 20, count(*) * 3000, array_fill(1, ARRAY[17]), array_fill(1, ARRAY[17])
  FROM jobs_job WHERE created_by = 'key:nightly' GROUP BY 1, 2, 4, 5, 6
"""


def make_history(
    jobs: int, *, projects: Sequence[UUID], versions: Sequence[UUID], events: int = 0, first: int = 1
) -> None:
    """`jobs` finished jobs, one in five failed, each with `events` log lines; the newest ended two seconds ago.

    `first`: where to go on, for a history that is made in pieces.
    """
    params: dict[str, Any] = {
        "first": first,
        "last": first + jobs - 1,
        "events": events,
        "projects": list(projects),
        "versions": list(versions),
    }
    with connection.cursor() as cursor:
        cursor.execute(JOBS, params)


def count_minutes() -> None:
    """The buckets that workers would have written, and the planner's statistics."""
    with connection.cursor() as cursor:
        cursor.execute(MINUTES)
        buckets.fold_hours()
        for table in ("jobs_job", "jobs_event", "jobs_minutestat", "apikeys_project", "agents_agentversion"):
            cursor.execute(f"ANALYZE {table}")
