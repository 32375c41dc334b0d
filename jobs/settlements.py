"""How attempts end in the database: many jobs' ends in one transaction, each checked by its fence.

Rows travel as one JSON document a statement. Arrays of values, one per column, cost the worker more than all of its
other work: each element is dumped and quoted by itself.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.backends.utils import CursorWrapper
from uuid_utils.compat import uuid7

from jobs.execution.outcomes import QuestionSpec
from jobs.models import Attempt, Job, MinuteStat

AttemptKey = tuple[UUID, int]  # (job, attempt)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How one attempt ended and where its job goes from there."""

    job_id: UUID
    attempt: int
    project_id: UUID
    agent_id: UUID | None
    queue: str
    next_seq: int  # the first number that this settlement's events take
    outcome: Attempt.Outcome
    status: Job.Status  # completed, failed, waiting_for_input, scheduled, queued or cancelled
    reason: str
    due_at: datetime
    started_at: datetime
    ended_at: datetime
    sandbox: str = ""
    result: str | None = None  # JSON text
    error: dict[str, Any] | None = None  # of the attempt; of the job too when it fails for good
    retry_after: timedelta | None = None  # for scheduled
    counts_as_failure: bool = False
    losses: int = 0  # the job's new lost_count
    questions: tuple[QuestionSpec, ...] = ()

    @property
    def key(self) -> AttemptKey:
        """The fence."""
        return (self.job_id, self.attempt)


@dataclass(frozen=True, slots=True)
class _Decided:
    """A settlement after a look at what callers asked for meanwhile."""

    row: Settlement
    status: Job.Status
    reason: str
    outcome: Attempt.Outcome


_Opened = Mapping[UUID, Sequence[tuple[UUID, QuestionSpec]]]  # new questions by job


def lock(cursor: CursorWrapper, worker_id: UUID, rows: Collection[Settlement]) -> dict[AttemptKey, bool]:
    """Lock the jobs that this worker holds and is about to end; the value says whether a cancel was requested.

    In one order, so that batches and sweeps never wait for each other in a ring. The lock also settles the race with a
    cancel: whoever commits first is seen by the other.
    """
    if not rows:
        return {}
    cursor.execute(
        """
        SELECT job.id, job.attempt, job.cancel_requested_at IS NOT NULL
          FROM jobs_job AS job
          JOIN unnest(%(jobs)s::uuid[], %(attempts)s::int[]) AS given(job_id, attempt)
            ON given.job_id = job.id AND given.attempt = job.attempt
         WHERE job.id = ANY(%(jobs)s::uuid[]) AND job.worker_id = %(worker_id)s AND job.status = 'running'
         ORDER BY job.id FOR NO KEY UPDATE OF job
        """,
        {"worker_id": worker_id, **_keys(rows)},
    )
    return {(row[0], row[1]): row[2] for row in cursor.fetchall()}


def _keys(rows: Collection[Settlement]) -> dict[str, str]:
    return {"jobs": _array(row.job_id for row in rows), "attempts": _array(row.attempt for row in rows)}


def _array(values: Iterable[UUID | int]) -> str:
    """PostgreSQL's array literal of values that need no quoting."""
    return "{" + ",".join(map(str, values)) + "}"


def settle(
    cursor: CursorWrapper, worker_id: UUID, rows: Sequence[Settlement], locked: Mapping[AttemptKey, bool]
) -> tuple[dict[AttemptKey, str], set[str]]:
    """End the attempts that `lock` found to be held; gives the jobs' new states, and the queues that got one back."""
    decided = [_decide(row, locked[row.key]) for row in rows if row.key in locked]
    if not decided:
        return {}, set()
    opened = _insert_questions(cursor, decided)
    _end_attempts(cursor, worker_id, decided, opened)
    waiting = [item.row.job_id for item in decided if item.status == Job.Status.WAITING_FOR_INPUT]
    if waiting:
        requeue_if_answered(cursor, waiting)
    _insert_stats(cursor, decided)
    return (
        {item.row.key: item.status.value for item in decided},
        {item.row.queue for item in decided if item.status == Job.Status.QUEUED},
    )


def _decide(row: Settlement, cancel_requested: bool) -> _Decided:
    """Once a cancel is requested, only `completed` can still win."""
    if cancel_requested and row.status != Job.Status.COMPLETED:
        return _Decided(row, Job.Status.CANCELLED, "cancelled", Attempt.Outcome.CANCELLED)
    return _Decided(row, row.status, row.reason, row.outcome)


def _insert_questions(cursor: CursorWrapper, decided: Sequence[_Decided]) -> _Opened:
    """Open the questions of jobs that begin to wait; returns those that are new, by job."""
    opened: dict[UUID, list[tuple[UUID, QuestionSpec]]] = defaultdict(list)
    for item in decided:
        if item.status != Job.Status.WAITING_FOR_INPUT:
            continue
        for question in item.row.questions:
            question_id = uuid7()
            reminders = sorted(span.total_seconds() for span in question.remind_after)
            cursor.execute(
                """
                INSERT INTO jobs_question (id, job_id, project_id, attempt, key, kind, prompt, choices, schema, details,
                    has_default, "default", assignees, expires_at, on_timeout, remind_after, remind_at, status,
                    answered_by, answered_via)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
                    statement_timestamp() + make_interval(secs => %s), %s, %s::float8[],
                    statement_timestamp() + make_interval(secs => %s), 'open', '', '')
                ON CONFLICT (job_id, key) DO NOTHING
                """,
                [
                    question_id,
                    item.row.job_id,
                    item.row.project_id,
                    item.row.attempt,
                    question.key,
                    question.kind,
                    question.prompt,
                    None if question.choices is None else json.dumps(question.choices),
                    json.dumps(question.schema),
                    json.dumps(question.details),
                    question.has_default,
                    json.dumps(question.default) if question.has_default else None,
                    question.assignees,
                    None if question.expires_in is None else question.expires_in.total_seconds(),
                    question.on_timeout,
                    reminders,
                    reminders[0] if reminders else None,
                ],
            )
            if cursor.rowcount:
                opened[item.row.job_id].append((question_id, question))
    return opened


# One statement: what an end changes is seen together or not at all, and each row is dumped once.
END_ATTEMPTS = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(rows)s) AS given(
        job_id uuid, attempt int, status text, reason text, last_seq bigint, failures int, losses int,
        retry_after float8, result text, error jsonb, sandbox text, started_at timestamptz, ended_at timestamptz,
        outcome text)
), settled AS (
    UPDATE jobs_job AS job
       SET status = given.status, status_reason = given.reason, worker_id = NULL, last_seq = given.last_seq,
           failed_count = job.failed_count + given.failures, lost_count = given.losses,
           run_at = CASE WHEN given.status = 'scheduled'
                         THEN statement_timestamp() + make_interval(secs => given.retry_after) ELSE job.run_at END,
           progress = CASE WHEN given.status = 'completed' THEN 1 ELSE job.progress END,
           result = CASE WHEN given.status = 'completed' THEN given.result::jsonb END,
           error = CASE WHEN given.status = 'failed' THEN given.error END,
           finished_at = CASE WHEN given.status IN ('completed', 'failed', 'cancelled') THEN statement_timestamp() END
      FROM given
     WHERE job.id = given.job_id AND job.id = ANY(%(jobs)s::uuid[]) AND job.attempt = given.attempt
       AND job.worker_id = %(worker_id)s AND job.status = 'running'
    RETURNING job.id
), told AS (
    INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
    SELECT event.job_id, seq, attempt, at, type, 'system', level, message, data
      FROM json_to_recordset(%(events)s) AS event(
               job_id uuid, seq bigint, attempt int, at timestamptz, type text, level text, message text, data jsonb)
      JOIN settled ON settled.id = event.job_id
)
INSERT INTO jobs_attempt (job_id, number, worker_id, sandbox, started_at, ended_at, outcome, error)
SELECT job_id, attempt, %(worker_id)s, sandbox, started_at, ended_at, outcome, error
  FROM given JOIN settled ON settled.id = given.job_id
ON CONFLICT (job_id, number) DO UPDATE
   SET ended_at = excluded.ended_at, outcome = excluded.outcome, error = excluded.error
 WHERE jobs_attempt.worker_id = excluded.worker_id
"""


def _end_attempts(
    cursor: CursorWrapper, worker_id: UUID, decided: Sequence[_Decided], opened: _Opened
) -> None:
    events = [event for item in decided for event in _events(item, opened.get(item.row.job_id, ()))]
    cursor.execute(
        END_ATTEMPTS,
        {
            "worker_id": worker_id,
            "jobs": _array(item.row.job_id for item in decided),
            "rows": json.dumps([_row(item, opened) for item in decided]),
            "events": json.dumps(events),
        },
    )


def _row(item: _Decided, opened: _Opened) -> dict[str, Any]:
    row = item.row
    return {
        "job_id": str(row.job_id),
        "attempt": row.attempt,
        "status": item.status.value,
        "reason": item.reason,
        "last_seq": row.next_seq + len(opened.get(row.job_id, ())),
        "failures": int(row.counts_as_failure),
        "losses": row.losses,
        "retry_after": None if row.retry_after is None else row.retry_after.total_seconds(),
        "result": row.result,
        "error": row.error,
        "sandbox": row.sandbox,
        "started_at": row.started_at.isoformat(),
        "ended_at": row.ended_at.isoformat(),
        "outcome": item.outcome.value,
    }


_EVENT_LEVEL = {Job.Status.FAILED: "error", Job.Status.CANCELLED: "warning", Job.Status.SCHEDULED: "warning"}
_EVENT_TYPE = {Job.Status.WAITING_FOR_INPUT: "job.waiting", Job.Status.SCHEDULED: "job.retrying"}


def _events(item: _Decided, opened: Sequence[tuple[UUID, QuestionSpec]]) -> list[dict[str, Any]]:
    """What this end tells: each new question, then the job's new state."""
    row = item.row
    told: list[tuple[str, str, str, dict[str, Any] | None]] = [
        (
            "question.opened",
            "info",
            question.prompt,
            {"question_id": str(question_id), "key": question.key, "kind": question.kind},
        )
        for question_id, question in opened
    ]
    message = str((row.error or {}).get("message", "")) if item.status != Job.Status.CANCELLED else ""
    type = _EVENT_TYPE.get(item.status, f"job.{item.status.value}")
    told.append((type, _EVENT_LEVEL.get(item.status, "info"), message, _details(item) or None))
    at = row.ended_at.isoformat()
    return [
        {
            "job_id": str(row.job_id),
            "seq": seq,
            "attempt": row.attempt,
            "at": at,
            "type": type,
            "level": level,
            "message": message,
            "data": data,
        }
        for seq, (type, level, message, data) in enumerate(told, start=row.next_seq)
    ]


def _details(item: _Decided) -> dict[str, Any]:
    row = item.row
    details: dict[str, Any] = {"reason": item.reason} if item.reason else {}
    if row.error and item.status in (Job.Status.FAILED, Job.Status.SCHEDULED):
        details["error"] = row.error
    if row.retry_after is not None and item.status == Job.Status.SCHEDULED:
        details["retry_in_s"] = round(row.retry_after.total_seconds(), 3)
    return details


def requeue_if_answered(cursor: CursorWrapper, job_ids: Sequence[UUID]) -> None:
    """Queue those waiting jobs that have no open question (all were answered before the wait began)."""
    cursor.execute(
        """
        WITH done AS (
            UPDATE jobs_job AS job SET status = 'queued', status_reason = 'answered', last_seq = last_seq + 1
             WHERE id = ANY(%s) AND status = 'waiting_for_input' AND status_reason = 'question'
               AND NOT EXISTS (SELECT 1 FROM jobs_question WHERE job_id = job.id AND status = 'open')
            RETURNING id, attempt, last_seq
        )
        INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
        SELECT id, last_seq, attempt, statement_timestamp(), 'job.queued', 'system', 'info', '' FROM done
        """,
        [list(job_ids)],
    )


def _insert_stats(cursor: CursorWrapper, decided: Sequence[_Decided]) -> None:
    """One row per kind of ending in this batch: readers sum, nobody waits."""
    groups: dict[tuple[Any, ...], list[Settlement]] = defaultdict(list)
    for item in decided:
        row = item.row
        code = str((row.error or {}).get("code", "")) if item.status == Job.Status.FAILED else ""
        minute = row.ended_at.replace(second=0, microsecond=0)
        groups[(minute, row.project_id, row.agent_id, row.queue, item.outcome.value, code)].append(row)
    stats = []
    for (minute, project_id, agent_id, queue, outcome, code), rows in groups.items():
        waits = [_ms(row.started_at - row.due_at) for row in rows]
        runs = [_ms(row.ended_at - row.started_at) for row in rows]
        stats.append(
            MinuteStat(
                minute=minute,
                project_id=project_id,
                agent_id=agent_id,
                queue=queue,
                outcome=outcome,
                error_code=code,
                count=len(rows),
                wait_ms=sum(waits),
                run_ms=sum(runs),
                wait_histogram=_histogram(waits),
                run_histogram=_histogram(runs),
            )
        )
    MinuteStat.objects.bulk_create(stats)


def _ms(span: timedelta) -> int:
    return max(0, round(span.total_seconds() * 1000))


def _histogram(values: Sequence[int]) -> list[int]:
    counts = [0] * (len(MinuteStat.HISTOGRAM_MS) + 1)
    for value in values:
        counts[bisect_left(MinuteStat.HISTOGRAM_MS, value)] += 1
    return counts


def settled_before(
    cursor: CursorWrapper, worker_id: UUID, rows: Sequence[Settlement]
) -> dict[AttemptKey, str]:
    """Of refused settlements those that this worker itself had committed: its reply was lost, the work was not."""
    if not rows:
        return {}
    cursor.execute(
        """
        SELECT given.job_id, given.attempt, job.status
          FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[]) AS given(job_id, attempt)
          JOIN jobs_attempt AS attempt ON attempt.job_id = given.job_id AND attempt.number = given.attempt
          JOIN jobs_job AS job ON job.id = given.job_id
         WHERE attempt.worker_id = %(worker_id)s AND attempt.ended_at IS NOT NULL AND attempt.outcome <> 'lost'
        """,
        {"worker_id": worker_id, **_keys(rows)},
    )
    return {(row[0], row[1]): row[2] for row in cursor.fetchall()}
