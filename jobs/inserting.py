"""New jobs and their first events in one statement, be it one job or a thousand."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connection

from apikeys.callers import Caller
from apikeys.models import Project
from engine import tracing
from jobs.models import Job

if TYPE_CHECKING:
    from jobs.services import Birth, JobRequest

INSERT = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(rows)s) AS given(
        id uuid, version uuid, queue text, task text, input jsonb, status text, reason text, priority text,
        credit float8, run_at timestamptz, max_attempts int, timeout int, deadline timestamptz, tags text[],
        metadata jsonb, webhook text, budget jsonb, discovery text, error jsonb)
), made AS (
    INSERT INTO jobs_job (id, project_id, agent_version_id, queue, task, input, status, status_reason, priority,
        sort_at, run_at, attempt, failed_count, lost_count, max_attempts, last_seq, timeout_seconds, deadline_at,
        cancel_requested_by, tags, metadata, webhook_url, budget, discovery, error, progress_message, created_by,
        created_by_key, created_at, finished_at, traceparent)
    SELECT id, %(project)s, version, queue, task, input, status, reason, priority,
        greatest(statement_timestamp(), run_at) - make_interval(secs => credit), run_at, 0, 0, 0, max_attempts, 1,
        timeout, deadline, '', tags, metadata, webhook, budget, discovery::jsonb, error, '', %(by)s, %(key)s,
        statement_timestamp(), CASE WHEN status = 'rejected' THEN statement_timestamp() END, %(traceparent)s
      FROM given
)
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
SELECT id, 1, 0, statement_timestamp(), 'job.' || status, 'system', 'info', '',
       CASE WHEN reason <> '' THEN jsonb_build_object('reason', reason) END
  FROM given
RETURNING at
"""


def insert_all(
    rows: Sequence[tuple["JobRequest", "Birth"]], *, by: Caller, project: Project
) -> datetime | None:
    """Insert jobs that begin without a question; gives when, by the database's clock."""
    if not rows:
        return None
    explanations: dict[int, str] = {}
    with job_span(*rows) as span, connection.cursor() as cursor:
        cursor.execute(
            INSERT,
            {
                "project": project.id,
                "by": by.label,
                "key": by.key.id if by.key else None,
                "traceparent": span.traceparent,
                "rows": json.dumps(
                    [_row(request, birth, explanations) for request, birth in rows], default=str
                ),
            },
        )
        at: datetime = cursor.fetchone()[0]
    return at


def job_span(*rows: tuple["JobRequest", "Birth"]) -> tracing.Span:
    """The span from which the attempts of new jobs come. Jobs of one request share one: they may be a thousand."""
    if not tracing.is_on():
        return tracing.NO_SPAN
    request, birth = rows[0]
    if len(rows) > 1:
        return tracing.span("jobs", {"engine.jobs.count": len(rows)}, kind="producer")
    slug = birth.version.agent.slug if birth.version else None
    return span_of(request.id, birth.status, request.queue, slug=slug)


def span_of(
    job_id: UUID, status: str, queue: str, *, slug: str | None = None, link: str = ""
) -> tracing.Span:
    """The span of one new job. `link` is the traceparent of the job that it goes on from."""
    about = {
        "engine.job.id": str(job_id),
        "engine.job.status": str(status),
        "engine.queue": queue,
        "engine.agent.slug": slug,
    }
    return tracing.span("job", about, kind="producer", link=link)


def _row(request: "JobRequest", birth: "Birth", explanations: dict[int, str]) -> dict[str, Any]:
    """The job as INSERT reads it; ids and times are left to the encoder."""
    return {
        "id": request.id,
        "version": birth.version and birth.version.id,
        "queue": request.queue,
        "task": request.task,
        "input": request.input,
        "status": birth.status,
        "reason": birth.reason,
        "priority": request.priority,
        "credit": Job.CREDIT_SECONDS[request.priority],
        "run_at": request.run_at,
        "max_attempts": birth.max_attempts(request),
        "timeout": request.timeout_seconds,
        "deadline": request.deadline_at,
        "tags": request.tags,
        "metadata": request.metadata,
        "webhook": request.webhook_url,
        "budget": request.budget,
        "discovery": _explained(explanations, birth),
        "error": birth.error,
    }


def _explained(explanations: dict[int, str], birth: "Birth") -> str | None:
    """The explanation as JSON text, written once for all jobs that share it."""
    if birth.explanation is None:
        return None
    key = id(birth.explanation)
    if key not in explanations:
        explanations[key] = json.dumps(birth.explanation)
    return explanations[key]
