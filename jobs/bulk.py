"""Many jobs in one transaction: each gets its own result, and what is wrong with one does not stop the others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from apikeys.callers import Caller
from apikeys.models import Project
from engine.errors import EngineError
from jobs import failpoints, services, wakeups
from jobs.models import Job
from jobs.services import Birth, JobRequest

MOST_JOBS = 1_000


@dataclass(frozen=True)
class Submitted:
    """What became of one request: the job's id and status, or why there is none."""

    id: UUID | None = None
    status: str = ""
    error: EngineError | None = None


@failpoints.commit("bulk")
def submit(requests: Sequence[JobRequest], *, by: Caller, project: Project) -> list[Submitted]:
    """Store these jobs, in one transaction. A named agent or a repeated task is looked up once.

    The whole is refused (QueueFull) when the project's queue has no room for all of them.
    """
    services.check_room(project, wanted=len(requests))
    births: dict[tuple[str, str], Birth | EngineError] = {}
    results: list[Submitted] = []
    rows: list[tuple[JobRequest, Birth]] = []
    for request in requests:
        try:
            birth = _birth(births, request, by=by, project=project)
            services.check_input(request, birth.version)
        except EngineError as error:
            results.append(Submitted(error=error))
        else:
            results.append(Submitted(id=request.id, status=birth.status.value))
            rows.append((request, birth))
    _insert_all(rows, by=by, project=project)
    return results


def _birth(
    births: dict[tuple[str, str], Birth | EngineError], request: JobRequest, *, by: Caller, project: Project
) -> Birth:
    """How this job begins; the lookup is shared by all that name the same agent, or set the same task."""
    key = (request.agent or "", "" if request.agent else request.task)
    if key not in births:
        try:
            births[key] = services.birth_of(request, by=by, project=project)
        except EngineError as error:
            births[key] = error
    found = births[key]
    if isinstance(found, EngineError):
        raise found
    return services.scheduled_or_queued(found, request)


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
        created_by_key, created_at, finished_at)
    SELECT id, %(project)s, version, queue, task, input, status, reason, priority,
        greatest(statement_timestamp(), run_at) - make_interval(secs => credit), run_at, 0, 0, 0, max_attempts, 1,
        timeout, deadline, '', tags, metadata, webhook, budget, discovery::jsonb, error, '', %(by)s, %(key)s,
        statement_timestamp(), CASE WHEN status = 'rejected' THEN statement_timestamp() END
      FROM given
)
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
SELECT id, 1, 0, statement_timestamp(), 'job.' || status, 'system', 'info', '',
       CASE WHEN reason <> '' THEN jsonb_build_object('reason', reason) END
  FROM given
"""


def _insert_all(rows: Sequence[tuple[JobRequest, Birth]], *, by: Caller, project: Project) -> None:
    """One statement for all jobs and their first events; those that ask which agent go one by one."""
    asking = [(request, birth) for request, birth in rows if birth.candidates]
    for request, birth in asking:
        services.insert(request, birth, by=by, project=project)
    plain = [(request, birth) for request, birth in rows if not birth.candidates]
    if not plain:
        return
    explanations: dict[int, str] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            INSERT,
            {
                "project": project.id,
                "by": by.label,
                "key": by.key.id if by.key else None,
                "rows": json.dumps(
                    [_row(request, birth, explanations) for request, birth in plain], default=str
                ),
            },
        )
    wakeups.queues_filled(*{request.queue for request, birth in plain if birth.status == Job.Status.QUEUED})
    wakeups.jobs_changed(*(request.id for request, _ in plain))


def _row(request: JobRequest, birth: Birth, explanations: dict[int, str]) -> dict[str, Any]:
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
        "max_attempts": request.max_attempts,
        "timeout": request.timeout_seconds,
        "deadline": request.deadline_at,
        "tags": request.tags,
        "metadata": request.metadata,
        "webhook": request.webhook_url,
        "budget": request.budget,
        "discovery": _explained(explanations, birth),
        "error": services.rejection(birth) if birth.status == Job.Status.REJECTED else None,
    }


def _explained(explanations: dict[int, str], birth: Birth) -> str | None:
    """The explanation as JSON text, written once for all jobs that share it."""
    if birth.explanation is None:
        return None
    key = id(birth.explanation)
    if key not in explanations:
        explanations[key] = json.dumps(birth.explanation)
    return explanations[key]
