"""Many finished jobs at once, by INSERT … SELECT: what an installation has after months."""

from typing import Any

from django.db import connection

from tests.jobs import make_project, make_version

JOBS = """
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
  FROM generate_series(1, %(jobs)s) AS n, LATERAL (SELECT statement_timestamp() - n * interval '2 s' AS t) AS times
"""

EVENTS = """
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
SELECT id, seq, 1, created_at + seq * interval '10 ms', 'log', 'stdout', 'info', 'line ' || seq || ' of a report'
  FROM jobs_job CROSS JOIN generate_series(1, %(events)s) AS seq
 WHERE created_by = 'key:nightly'
"""

MINUTES = """
INSERT INTO jobs_minutestat (minute, project_id, agent_id, queue, outcome, error_code, count, wait_ms, run_ms,
                             wait_histogram, run_histogram)
SELECT date_trunc('minute', finished_at), project_id, NULL, queue, status, coalesce(error ->> 'code', ''), count(*),
       count(*) * 20, count(*) * 3000, array_fill(1, ARRAY[17]), array_fill(1, ARRAY[17])
  FROM jobs_job WHERE created_by = 'key:nightly' GROUP BY 1, 2, 4, 5, 6
"""


def make_history(jobs: int, *, events: int = 0) -> None:
    """`jobs` finished jobs of two projects and three agents, one in five failed, each with `events` log lines."""
    params: dict[str, Any] = {
        "jobs": jobs,
        "events": events,
        "projects": [make_project(slug).id for slug in ("acme", "globex")],
        "versions": [make_version(slug).id for slug in ("counter", "drawer", "reader")],
    }
    with connection.cursor() as cursor:
        cursor.execute(JOBS, params)
        if events:
            cursor.execute(EVENTS, params)
        cursor.execute(MINUTES)
        for table in ("jobs_job", "jobs_event", "jobs_minutestat", "apikeys_project", "agents_agentversion"):
            cursor.execute(f"ANALYZE {table}")
