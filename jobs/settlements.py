"""How attempts end in the database: many jobs' ends in one transaction, each checked by its fence.

Rows travel as one JSON document a statement. Arrays of values, one per column, cost the worker more than all of its
other work: each element is dumped and quoted by itself.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db.backends.utils import CursorWrapper
from uuid_utils.compat import uuid7

from jobs import children
from jobs.execution.outcomes import ChildSpec, QuestionSpec
from jobs.models import Attempt, Job, MinuteStat
from jobs.queries import plain_array, requeue_if_free

AttemptKey = tuple[UUID, int]  # (job, attempt)


class Settlement(NamedTuple):
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
    due_at: float  # seconds since 1970, by the database's clock
    started_at: float
    ended_at: float
    sandbox: str = ""
    result: str | None = None  # JSON text
    error: dict[str, Any] | None = None  # of the attempt; of the job too when it fails for good
    retry_after: timedelta | None = None  # for scheduled
    counts_as_failure: bool = False
    losses: int = 0  # the job's new lost_count
    questions: tuple[QuestionSpec, ...] = ()
    parent_id: UUID | None = None
    children: tuple[ChildSpec, ...] = ()  # that it starts and waits for

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


def lock(cursor: CursorWrapper, worker_id: UUID, rows: Collection[Settlement]) -> dict[AttemptKey, bool]:
    """Lock the jobs that this worker holds and is about to end; the value says whether a cancel was requested.

    In one order, so that batches and sweeps never wait for each other in a ring. The lock also settles the race with a
    cancel: whoever commits first is seen by the other.
    """
    if not rows:
        return {}
    children.lock_parents(cursor, {row.parent_id for row in rows if row.parent_id})
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
    return {
        "jobs": plain_array(row.job_id for row in rows),
        "attempts": plain_array(row.attempt for row in rows),
    }


def settle(
    cursor: CursorWrapper, worker_id: UUID, rows: Sequence[Settlement], locked: Mapping[AttemptKey, bool]
) -> tuple[dict[AttemptKey, str], set[str]]:
    """End the attempts that `lock` found to be held; gives the jobs' new states, and the queues that got one back."""
    decided = [_decide(row, locked[row.key]) for row in rows if row.key in locked]
    if not decided:
        return {}, set()
    told = _open_questions(cursor, decided)
    waiting = [item.row for item in decided if item.status == Job.Status.WAITING_FOR_INPUT]
    for row in waiting:
        told[row.job_id] += _start_children(cursor, row, seq=row.next_seq + told[row.job_id])
    _end_attempts(cursor, worker_id, decided, told)
    woken = {item.row.parent_id for item in decided if item.row.parent_id and item.status in Job.FINAL}
    # A job that waits for nothing, its questions all having their answers already, goes on instead of for ever waiting.
    requeue_if_free(cursor, woken.union(row.job_id for row in waiting))
    _insert_stats(cursor, decided)
    filled = {item.row.queue for item in decided if item.status == Job.Status.QUEUED}
    filled.update(row.queue for row in waiting if row.children)
    return {item.row.key: item.status.value for item in decided}, filled


def _decide(row: Settlement, cancel_requested: bool) -> _Decided:
    """Once a cancel is requested, only `completed` can still win."""
    if cancel_requested and row.status != Job.Status.COMPLETED:
        return _Decided(row, Job.Status.CANCELLED, "cancelled", Attempt.Outcome.CANCELLED)
    return _Decided(row, row.status, row.reason, row.outcome)


def _open_questions(cursor: CursorWrapper, decided: Sequence[_Decided]) -> dict[UUID, int]:
    """Open and tell the questions of jobs that begin to wait; returns how many each job has told."""
    told: dict[UUID, int] = defaultdict(int)
    for item in decided:
        if item.status == Job.Status.WAITING_FOR_INPUT:
            for question in item.row.questions:
                told[item.row.job_id] += _open_question(
                    cursor, item.row, question, seq=item.row.next_seq + told[item.row.job_id]
                )
    return told


def _open_question(cursor: CursorWrapper, row: Settlement, question: QuestionSpec, *, seq: int) -> int:
    """1, or 0 for a question that an earlier attempt opened."""
    reminders = sorted(span.total_seconds() for span in question.remind_after)
    cursor.execute(
        """
        WITH opened AS (
            INSERT INTO jobs_question (id, job_id, project_id, attempt, key, kind, prompt, choices, schema, details,
                has_default, "default", assignees, expires_at, on_timeout, remind_after, remind_at, status, answered_by,
                answered_via)
            VALUES (%(id)s, %(job_id)s, %(project_id)s, %(attempt)s, %(key)s, %(kind)s, %(prompt)s, %(choices)s,
                %(schema)s, %(details)s, %(has_default)s, %(default)s, %(assignees)s,
                statement_timestamp() + make_interval(secs => %(expires_in)s), %(on_timeout)s, %(reminders)s::float8[],
                statement_timestamp() + make_interval(secs => %(reminder)s), 'open', '', '')
            ON CONFLICT (job_id, key) DO NOTHING
            RETURNING job_id, attempt
        )
        INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
        SELECT job_id, %(seq)s, attempt, to_timestamp(%(at)s), 'question.opened', 'system', 'info', %(prompt)s, %(data)s
          FROM opened
        """,
        {
            "id": (question_id := uuid7()),
            "job_id": row.job_id,
            "project_id": row.project_id,
            "attempt": row.attempt,
            "key": question.key,
            "kind": question.kind,
            "prompt": question.prompt,
            "choices": None if question.choices is None else json.dumps(question.choices),
            "schema": json.dumps(question.schema),
            "details": json.dumps(question.details),
            "has_default": question.has_default,
            "default": json.dumps(question.default) if question.has_default else None,
            "assignees": question.assignees,
            "expires_in": _seconds(question.expires_in),
            "on_timeout": question.on_timeout,
            "reminders": reminders,
            "reminder": reminders[0] if reminders else None,
            "seq": seq,
            "at": row.ended_at,
            "data": json.dumps({"question_id": str(question_id), "key": question.key, "kind": question.kind}),
        },
    )
    return int(cursor.rowcount)


def _start_children(cursor: CursorWrapper, row: Settlement, *, seq: int) -> int:
    """Insert and tell the jobs that this one starts; returns how many."""
    children.start(cursor, row.job_id, row.children)
    for number, child in enumerate(row.children, start=seq):
        cursor.execute(
            """
            INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
            VALUES (%s, %s, %s, to_timestamp(%s), 'job.child_started', 'system', 'info', %s, %s)
            """,
            [
                row.job_id,
                number,
                row.attempt,
                row.ended_at,
                child.task[:2000],
                json.dumps({"job_id": str(child.id), "key": child.key}),
            ],
        )
    return len(row.children)


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()


# One statement: what an end changes is seen together or not at all, and each row is dumped once.
END_ATTEMPTS = """
WITH given AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(rows)s) AS given(
        job_id uuid, attempt int, status text, reason text, seq bigint, failures int, losses int, retry_after float8,
        result text, error jsonb, sandbox text, started_at float8, ended_at float8, outcome text,
        type text, level text, message text, data jsonb)
), settled AS (
    UPDATE jobs_job AS job
       SET status = given.status, status_reason = given.reason, worker_id = NULL, last_seq = given.seq,
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
    RETURNING given.*
), told AS (
    INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
    SELECT job_id, seq, attempt, to_timestamp(ended_at), type, 'system', level, message, data FROM settled
)
INSERT INTO jobs_attempt (job_id, number, worker_id, sandbox, started_at, ended_at, outcome, error)
SELECT job_id, attempt, %(worker_id)s, sandbox, to_timestamp(started_at), to_timestamp(ended_at), outcome, error
  FROM settled
ON CONFLICT (job_id, number) DO UPDATE
   SET ended_at = excluded.ended_at, outcome = excluded.outcome, error = excluded.error
 WHERE jobs_attempt.worker_id = excluded.worker_id
"""


def _end_attempts(
    cursor: CursorWrapper, worker_id: UUID, decided: Sequence[_Decided], told: Mapping[UUID, int]
) -> None:
    cursor.execute(
        END_ATTEMPTS,
        {
            "worker_id": worker_id,
            "jobs": plain_array(item.row.job_id for item in decided),
            "rows": json.dumps([_row(item, told.get(item.row.job_id, 0)) for item in decided]),
        },
    )


_EVENT_LEVEL = {Job.Status.FAILED: "error", Job.Status.CANCELLED: "warning", Job.Status.SCHEDULED: "warning"}
_EVENT_TYPE = {status: f"job.{status.value}" for status in Job.Status} | {
    Job.Status.WAITING_FOR_INPUT: "job.waiting",
    Job.Status.SCHEDULED: "job.retrying",
}


def _row(item: _Decided, told: int) -> dict[str, Any]:
    """What one end changes, and its event, which comes after the `told` ones of its questions."""
    row, status = item.row, item.status
    return {
        "job_id": str(row.job_id),
        "attempt": row.attempt,
        "status": status,
        "reason": item.reason,
        "seq": row.next_seq + told,
        "failures": int(row.counts_as_failure),
        "losses": row.losses,
        "retry_after": _seconds(row.retry_after),
        "result": row.result,
        "error": row.error,
        "sandbox": row.sandbox,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "outcome": item.outcome,
        "type": _EVENT_TYPE[status],
        "level": _EVENT_LEVEL.get(status, "info"),
        "message": row.error.get("message", "") if row.error and status != Job.Status.CANCELLED else "",
        "data": _details(item) or None,
    }


def _details(item: _Decided) -> dict[str, Any]:
    row = item.row
    details: dict[str, Any] = {"reason": item.reason} if item.reason else {}
    if row.error and item.status in (Job.Status.FAILED, Job.Status.SCHEDULED):
        details["error"] = row.error
    if row.retry_after is not None and item.status == Job.Status.SCHEDULED:
        details["retry_in_s"] = round(row.retry_after.total_seconds(), 3)
    return details


def _insert_stats(cursor: CursorWrapper, decided: Sequence[_Decided]) -> None:
    """One row per kind of ending in this batch: readers sum, nobody waits."""
    groups: dict[tuple[Any, ...], list[Settlement]] = defaultdict(list)
    for item in decided:
        row = item.row
        code = str((row.error or {}).get("code", "")) if item.status == Job.Status.FAILED else ""
        minute = row.ended_at // 60 * 60
        groups[(minute, row.project_id, row.agent_id, row.queue, item.outcome, code)].append(row)
    for group, rows in groups.items():
        waits = [_ms(row.started_at - row.due_at) for row in rows]
        runs = [_ms(row.ended_at - row.started_at) for row in rows]
        cursor.execute(
            """
            INSERT INTO jobs_minutestat (minute, project_id, agent_id, queue, outcome, error_code, count,
                wait_ms, run_ms, wait_histogram, run_histogram)
            VALUES (to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s, %s, %s::int[], %s::int[])
            """,
            [
                *group,
                len(rows),
                sum(waits),
                sum(runs),
                plain_array(_histogram(waits)),
                plain_array(_histogram(runs)),
            ],
        )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


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
