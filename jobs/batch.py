"""What a worker writes for its running jobs, many jobs in one durable commit.

A batch is repeatable: after a lost connection at commit the same batch is sent again. Events and steps meet only rows
of their own attempt then, and a settlement that had gone through is recognised by its attempt row.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.backends.utils import CursorWrapper
from uuid_utils.compat import uuid7

from jobs import failpoints
from jobs.execution.outcomes import QuestionSpec
from jobs.models import Attempt, Job, MinuteStat
from jobs.queries import lock_lease

AttemptKey = tuple[UUID, int]  # (job, attempt)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event, already numbered by its single writer. `data` is JSON text that PostgreSQL accepts."""

    job_id: UUID
    attempt: int
    seq: int
    at: datetime
    type: str
    source: str
    level: str
    message: str
    data: str | None


@dataclass(frozen=True, slots=True)
class StepRow:
    """A journal entry begun, or begun and ended."""

    job_id: UUID
    attempt: int
    key: str
    ordinal: int
    kind: str
    signature: str
    once: bool
    begun_at: datetime
    ended_at: datetime | None = None
    result: str | None = None  # JSON text
    files: str = "[]"
    deleted: str = "[]"


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """A file whose bytes are stored already."""

    id: UUID
    job_id: UUID
    attempt: int
    project_id: UUID
    name: str
    media_type: str
    size: int
    sha256: str
    storage_key: str


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """The latest progress of a running job."""

    job_id: UUID
    attempt: int
    fraction: float | None
    message: str


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """Which sandbox an attempt got, stored at once so that a successor can kill it."""

    job_id: UUID
    attempt: int
    sandbox: str
    started_at: datetime


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


@dataclass
class Batch:
    """Everything waiting to be written. Order within one job is kept; a settlement is always its job's last."""

    events: list[EventRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    progress: dict[AttemptKey, ProgressRow] = field(default_factory=dict)
    sandboxes: list[SandboxRow] = field(default_factory=list)
    durable_steps: set[AttemptKey] = field(default_factory=set)  # whose lost_count goes back to 0
    settlements: list[Settlement] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.events
            or self.steps
            or self.artifacts
            or self.progress
            or self.sandboxes
            or self.durable_steps
            or self.settlements
        )

    def attempts(self) -> set[AttemptKey]:
        """Every attempt that this batch writes for."""
        rows: Iterable[Any] = (
            *self.events,
            *self.steps,
            *self.artifacts,
            *self.progress.values(),
            *self.sandboxes,
            *self.settlements,
        )
        return {(row.job_id, row.attempt) for row in rows} | self.durable_steps

    def only(self, key: AttemptKey) -> "Batch":
        """The part of one attempt."""
        return Batch(
            events=[row for row in self.events if (row.job_id, row.attempt) == key],
            steps=[row for row in self.steps if (row.job_id, row.attempt) == key],
            artifacts=[row for row in self.artifacts if (row.job_id, row.attempt) == key],
            progress={key: self.progress[key]} if key in self.progress else {},
            sandboxes=[row for row in self.sandboxes if (row.job_id, row.attempt) == key],
            durable_steps=self.durable_steps & {key},
            settlements=[row for row in self.settlements if (row.job_id, row.attempt) == key],
        )


@dataclass(frozen=True)
class Written:
    """What a batch did. An attempt in `refused` has lost its lease: nothing of it was written in this batch."""

    refused: set[AttemptKey]
    settled: dict[AttemptKey, str]  # -> the job's new status
    queues: set[str]  # that got a job back


def write(worker_id: UUID, batch: Batch) -> Written:
    """Write a batch in one transaction. Raises WorkerLeaseLost (nothing is written)."""
    with failpoints.commit("batch"), connection.cursor() as cursor:
        lock_lease(cursor, worker_id)
        held = _held(cursor, worker_id, batch)
        refused = batch.attempts() - held
        _insert_events(cursor, worker_id, batch.events)
        _upsert_steps(cursor, worker_id, batch.steps)
        _upsert_artifacts(cursor, worker_id, batch.artifacts)
        _update_jobs(cursor, worker_id, batch)
        _note_sandboxes(cursor, worker_id, batch.sandboxes)
        settled, queues = _settle(cursor, worker_id, batch.settlements)
        ours = _settled_before(cursor, worker_id, [row for row in batch.settlements if _key(row) in refused])
        return Written(refused=refused - ours.keys(), settled=settled | ours, queues=queues)


def _key(row: Settlement) -> AttemptKey:
    return (row.job_id, row.attempt)


# The fence (I3): every write matches job, attempt, worker and state. The worker's row is locked, so what it finds
# stays true to the end of the transaction.
FENCE = """
JOIN jobs_job AS job ON job.id = given.job_id AND job.attempt = given.attempt
 AND job.worker_id = %(worker_id)s AND job.status = 'running'
"""


def _held(cursor: CursorWrapper, worker_id: UUID, batch: Batch) -> set[AttemptKey]:
    keys = list(batch.attempts())
    cursor.execute(
        f"SELECT given.job_id, given.attempt FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[])"  # noqa: S608
        f" AS given(job_id, attempt) {FENCE}",
        {"worker_id": worker_id, "jobs": [key[0] for key in keys], "attempts": [key[1] for key in keys]},
    )
    return {(row[0], row[1]) for row in cursor.fetchall()}


INSERT_EVENTS = f"""
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
SELECT given.job_id, given.seq, given.attempt, given.at, given.type, given.source, given.level, given.message,
       given.data::jsonb
  FROM unnest(%(jobs)s::uuid[], %(seqs)s::bigint[], %(attempts)s::int[], %(ats)s::timestamptz[], %(types)s::text[],
              %(sources)s::text[], %(levels)s::text[], %(messages)s::text[], %(datas)s::text[])
       AS given(job_id, seq, attempt, at, type, source, level, message, data)
  {FENCE}
ON CONFLICT (job_id, seq) DO NOTHING
"""  # noqa: S608


def _insert_events(cursor: CursorWrapper, worker_id: UUID, rows: Sequence[EventRow]) -> None:
    if rows:
        cursor.execute(
            INSERT_EVENTS,
            {
                "worker_id": worker_id,
                "jobs": [row.job_id for row in rows],
                "seqs": [row.seq for row in rows],
                "attempts": [row.attempt for row in rows],
                "ats": [row.at for row in rows],
                "types": [row.type for row in rows],
                "sources": [row.source for row in rows],
                "levels": [row.level for row in rows],
                "messages": [row.message for row in rows],
                "datas": [row.data for row in rows],
            },
        )
        if cursor.rowcount < len(rows):
            _check_repeat(cursor, rows)


class SequenceTaken(Exception):
    """Another attempt's event has the number this one would take: two writers believed they held one job."""


def _check_repeat(cursor: CursorWrapper, rows: Sequence[EventRow]) -> None:
    """A number that is taken may only be this attempt's own, from a batch whose reply was lost."""
    cursor.execute(
        """
        SELECT 1 FROM unnest(%s::uuid[], %s::bigint[], %s::int[]) AS given(job_id, seq, attempt)
          JOIN jobs_event AS event USING (job_id, seq)
          JOIN jobs_job AS job ON job.id = given.job_id AND job.attempt = given.attempt AND job.status = 'running'
         WHERE event.attempt <> given.attempt LIMIT 1
        """,
        [[row.job_id for row in rows], [row.seq for row in rows], [row.attempt for row in rows]],
    )
    if cursor.fetchone():
        raise SequenceTaken


UPSERT_STEPS = f"""
INSERT INTO jobs_step (job_id, key, ordinal, kind, signature, once, attempt, begun_at, ended_at, result, files, deleted)
SELECT given.job_id, given.key, given.ordinal, given.kind, given.signature, given.once, given.attempt, given.begun_at,
       given.ended_at, given.result::jsonb, given.files::jsonb, given.deleted::jsonb
  FROM unnest(%(jobs)s::uuid[], %(keys)s::text[], %(ordinals)s::int[], %(kinds)s::text[], %(signatures)s::text[],
              %(onces)s::bool[], %(attempts)s::int[], %(begun)s::timestamptz[], %(ended)s::timestamptz[],
              %(results)s::text[], %(files)s::text[], %(deleted)s::text[])
       AS given(job_id, key, ordinal, kind, signature, once, attempt, begun_at, ended_at, result, files, deleted)
  {FENCE}
ON CONFLICT (job_id, key) DO UPDATE
   SET ended_at = excluded.ended_at, result = excluded.result, files = excluded.files, deleted = excluded.deleted,
       attempt = excluded.attempt
 WHERE jobs_step.ended_at IS NULL
"""  # noqa: S608  (a durable end is never written over)


def _upsert_steps(cursor: CursorWrapper, worker_id: UUID, rows: Sequence[StepRow]) -> None:
    if not rows:
        return
    last = {(row.job_id, row.key): row for row in rows}.values()  # begun and ended in one batch: one row
    cursor.execute(
        UPSERT_STEPS,
        {
            "worker_id": worker_id,
            "jobs": [row.job_id for row in last],
            "keys": [row.key for row in last],
            "ordinals": [row.ordinal for row in last],
            "kinds": [row.kind for row in last],
            "signatures": [row.signature for row in last],
            "onces": [row.once for row in last],
            "attempts": [row.attempt for row in last],
            "begun": [row.begun_at for row in last],
            "ended": [row.ended_at for row in last],
            "results": [row.result for row in last],
            "files": [row.files for row in last],
            "deleted": [row.deleted for row in last],
        },
    )


UPSERT_ARTIFACTS = f"""
INSERT INTO jobs_artifact (id, job_id, project_id, attempt, name, media_type, size, sha256, storage_key)
SELECT given.id, given.job_id, given.project_id, given.attempt, given.name, given.media_type, given.size, given.sha256,
       given.storage_key
  FROM unnest(%(ids)s::uuid[], %(jobs)s::uuid[], %(projects)s::uuid[], %(attempts)s::int[], %(names)s::text[],
              %(media_types)s::text[], %(sizes)s::bigint[], %(hashes)s::text[], %(storage_keys)s::text[])
       AS given(id, job_id, project_id, attempt, name, media_type, size, sha256, storage_key)
  {FENCE}
ON CONFLICT (job_id, name) DO UPDATE
   SET attempt = excluded.attempt, media_type = excluded.media_type, size = excluded.size, sha256 = excluded.sha256,
       storage_key = excluded.storage_key
"""  # noqa: S608


def _upsert_artifacts(cursor: CursorWrapper, worker_id: UUID, rows: Sequence[ArtifactRow]) -> None:
    if not rows:
        return
    last = {(row.job_id, row.name): row for row in rows}.values()
    cursor.execute(
        UPSERT_ARTIFACTS,
        {
            "worker_id": worker_id,
            "ids": [row.id for row in last],
            "jobs": [row.job_id for row in last],
            "projects": [row.project_id for row in last],
            "attempts": [row.attempt for row in last],
            "names": [row.name for row in last],
            "media_types": [row.media_type for row in last],
            "sizes": [row.size for row in last],
            "hashes": [row.sha256 for row in last],
            "storage_keys": [row.storage_key for row in last],
        },
    )


def _update_jobs(cursor: CursorWrapper, worker_id: UUID, batch: Batch) -> None:
    """Progress, and the end of a row of losses where a step became durable."""
    if batch.progress:
        rows = list(batch.progress.values())
        cursor.execute(
            """
            UPDATE jobs_job AS job
               SET progress = coalesce(given.fraction, job.progress), progress_message = given.message
              FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(fractions)s::float8[], %(messages)s::text[])
                   AS given(job_id, attempt, fraction, message)
             WHERE job.id = given.job_id AND job.attempt = given.attempt AND job.worker_id = %(worker_id)s
               AND job.status = 'running'
            """,
            {
                "worker_id": worker_id,
                "jobs": [row.job_id for row in rows],
                "attempts": [row.attempt for row in rows],
                "fractions": [row.fraction for row in rows],
                "messages": [row.message for row in rows],
            },
        )
    if batch.durable_steps:
        keys = list(batch.durable_steps)
        cursor.execute(
            """
            UPDATE jobs_job AS job SET lost_count = 0
              FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[]) AS given(job_id, attempt)
             WHERE job.id = given.job_id AND job.attempt = given.attempt AND job.worker_id = %(worker_id)s
               AND job.status = 'running'
            """,
            {"worker_id": worker_id, "jobs": [key[0] for key in keys], "attempts": [key[1] for key in keys]},
        )


def _note_sandboxes(cursor: CursorWrapper, worker_id: UUID, rows: Sequence[SandboxRow]) -> None:
    if rows:
        cursor.execute(
            f"""
            INSERT INTO jobs_attempt (job_id, number, worker_id, sandbox, started_at, outcome)
            SELECT given.job_id, given.attempt, %(worker_id)s, given.sandbox, given.started_at, 'running'
              FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(sandboxes)s::text[], %(started)s::timestamptz[])
                   AS given(job_id, attempt, sandbox, started_at)
              {FENCE}
            ON CONFLICT (job_id, number) DO UPDATE SET sandbox = excluded.sandbox
            """,  # noqa: S608
            {
                "worker_id": worker_id,
                "jobs": [row.job_id for row in rows],
                "attempts": [row.attempt for row in rows],
                "sandboxes": [row.sandbox for row in rows],
                "started": [row.started_at for row in rows],
            },
        )


@dataclass(frozen=True)
class _Decided:
    """A settlement after a look at what callers asked for meanwhile."""

    row: Settlement
    status: Job.Status
    reason: str
    outcome: Attempt.Outcome

    @property
    def is_final(self) -> bool:
        return self.status in Job.FINAL


def _settle(
    cursor: CursorWrapper, worker_id: UUID, rows: Sequence[Settlement]
) -> tuple[dict[AttemptKey, str], set[str]]:
    if not rows:
        return {}, set()
    # Locked in one order, so that batches and sweeps never wait for each other in a ring. The lock also settles the
    # race with a cancel: whoever commits first is seen by the other.
    cursor.execute(
        f"""
        SELECT given.job_id, given.attempt, job.cancel_requested_at IS NOT NULL
          FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[]) AS given(job_id, attempt)
          {FENCE}
         ORDER BY job.id FOR NO KEY UPDATE OF job
        """,  # noqa: S608
        {
            "worker_id": worker_id,
            "jobs": [row.job_id for row in rows],
            "attempts": [row.attempt for row in rows],
        },
    )
    cancelled = {(row[0], row[1]): row[2] for row in cursor.fetchall()}
    decided = [_decide(row, cancelled[_key(row)]) for row in rows if _key(row) in cancelled]
    if not decided:
        return {}, set()
    opened = _insert_questions(cursor, decided)
    _insert_settling_events(cursor, worker_id, decided, opened)
    _update_settled(cursor, worker_id, decided, opened)
    _insert_attempts(cursor, worker_id, decided)
    _insert_stats(cursor, decided)
    return (
        {_key(item.row): item.status.value for item in decided},
        {item.row.queue for item in decided if item.status == Job.Status.QUEUED},
    )


def _decide(row: Settlement, cancel_requested: bool) -> _Decided:
    """Once a cancel is requested, only `completed` can still win."""
    if cancel_requested and row.status != Job.Status.COMPLETED:
        return _Decided(row, Job.Status.CANCELLED, "cancelled", Attempt.Outcome.CANCELLED)
    return _Decided(row, row.status, row.reason, row.outcome)


def _insert_questions(
    cursor: CursorWrapper, decided: Sequence[_Decided]
) -> dict[UUID, list[tuple[UUID, QuestionSpec]]]:
    """Open the questions of jobs that begin to wait; returns those that are new, by job."""
    opened: dict[UUID, list[tuple[UUID, QuestionSpec]]] = defaultdict(list)
    for item in decided:
        if item.status != Job.Status.WAITING_FOR_INPUT:
            continue
        for question in item.row.questions:
            question_id = uuid7()
            cursor.execute(
                """
                INSERT INTO jobs_question (id, job_id, project_id, attempt, key, kind, prompt, choices, schema, details,
                    has_default, "default", assignees, expires_at, on_timeout, status, answered_by, answered_via)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
                    statement_timestamp() + make_interval(secs => %s), %s, 'open', '', '')
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
                ],
            )
            if cursor.rowcount:
                opened[item.row.job_id].append((question_id, question))
    return opened


_EVENT_LEVEL = {Job.Status.FAILED: "error", Job.Status.CANCELLED: "warning", Job.Status.SCHEDULED: "warning"}
_EVENT_TYPE = {Job.Status.WAITING_FOR_INPUT: "job.waiting", Job.Status.SCHEDULED: "job.retrying"}


def _insert_settling_events(
    cursor: CursorWrapper,
    worker_id: UUID,
    decided: Sequence[_Decided],
    opened: dict[UUID, list[tuple[UUID, QuestionSpec]]],
) -> None:
    events: list[EventRow] = []
    for item in decided:
        row = item.row
        for question_id, question in opened.get(row.job_id, ()):
            data = {"question_id": str(question_id), "key": question.key, "kind": question.kind}
            events.append(
                _event(row, _count_of(events, row), "question.opened", "info", question.prompt, data)
            )
        message = str((row.error or {}).get("message", ""))
        details: dict[str, Any] = {"reason": item.reason} if item.reason else {}
        if row.error and item.status in (Job.Status.FAILED, Job.Status.SCHEDULED):
            details["error"] = row.error
        if row.retry_after is not None and item.status == Job.Status.SCHEDULED:
            details["retry_in_s"] = round(row.retry_after.total_seconds(), 3)
        events.append(
            _event(
                row,
                _count_of(events, row),
                _EVENT_TYPE.get(item.status, f"job.{item.status.value}"),
                _EVENT_LEVEL.get(item.status, "info"),
                message if item.status != Job.Status.CANCELLED else "",
                details or None,
            )
        )
    _insert_events(cursor, worker_id, events)


def _count_of(events: Sequence[EventRow], row: Settlement) -> int:
    """How many events of this settlement are there already."""
    count = 0
    for event in reversed(events):
        if event.job_id != row.job_id:
            break
        count += 1
    return count


def _event(
    row: Settlement, offset: int, type: str, level: str, message: str, data: dict[str, Any] | None
) -> EventRow:
    return EventRow(
        job_id=row.job_id,
        attempt=row.attempt,
        seq=row.next_seq + offset,
        at=row.ended_at,
        type=type,
        source="system",
        level=level,
        message=message,
        data=None if data is None else json.dumps(data),
    )


# A job that would wait for questions which all have their answers already goes on at once instead of for ever.
UPDATE_SETTLED = """
UPDATE jobs_job AS job
   SET status = given.status, status_reason = given.reason, worker_id = NULL, last_seq = given.last_seq,
       failed_count = job.failed_count + given.failures, lost_count = given.losses,
       run_at = CASE WHEN given.status = 'scheduled' THEN statement_timestamp() + given.retry_after ELSE job.run_at END,
       progress = CASE WHEN given.status = 'completed' THEN 1 ELSE job.progress END,
       result = given.result::jsonb,
       error = CASE WHEN given.status = 'failed' THEN given.error::jsonb END,
       finished_at = CASE WHEN given.status IN ('completed', 'failed', 'cancelled') THEN statement_timestamp() END
  FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(statuses)s::text[], %(reasons)s::text[], %(seqs)s::bigint[],
              %(failures)s::int[], %(losses)s::int[], %(delays)s::interval[], %(results)s::text[], %(errors)s::text[])
       AS given(job_id, attempt, status, reason, last_seq, failures, losses, retry_after, result, error)
 WHERE job.id = given.job_id AND job.attempt = given.attempt AND job.worker_id = %(worker_id)s
   AND job.status = 'running'
"""


def _update_settled(
    cursor: CursorWrapper,
    worker_id: UUID,
    decided: Sequence[_Decided],
    opened: dict[UUID, list[tuple[UUID, QuestionSpec]]],
) -> None:
    rows = [item.row for item in decided]
    cursor.execute(
        UPDATE_SETTLED,
        {
            "worker_id": worker_id,
            "jobs": [row.job_id for row in rows],
            "attempts": [row.attempt for row in rows],
            "statuses": [item.status.value for item in decided],
            "reasons": [item.reason for item in decided],
            "seqs": [row.next_seq + len(opened.get(row.job_id, ())) for row in rows],
            "failures": [int(row.counts_as_failure) for row in rows],
            "losses": [row.losses for row in rows],
            "delays": [row.retry_after for row in rows],
            "results": [item.row.result if item.status == Job.Status.COMPLETED else None for item in decided],
            "errors": [None if row.error is None else json.dumps(row.error) for row in rows],
        },
    )
    waiting = [item.row.job_id for item in decided if item.status == Job.Status.WAITING_FOR_INPUT]
    if waiting:
        requeue_if_answered(cursor, waiting)


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


def _insert_attempts(cursor: CursorWrapper, worker_id: UUID, decided: Sequence[_Decided]) -> None:
    rows = [item.row for item in decided]
    cursor.execute(
        """
        INSERT INTO jobs_attempt (job_id, number, worker_id, sandbox, started_at, ended_at, outcome, error)
        SELECT job_id, number, %(worker_id)s, sandbox, started_at, ended_at, outcome, error::jsonb
          FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(sandboxes)s::text[], %(started)s::timestamptz[],
                      %(ended)s::timestamptz[], %(outcomes)s::text[], %(errors)s::text[])
               AS given(job_id, number, sandbox, started_at, ended_at, outcome, error)
        ON CONFLICT (job_id, number) DO UPDATE
           SET ended_at = excluded.ended_at, outcome = excluded.outcome, error = excluded.error
         WHERE jobs_attempt.worker_id = excluded.worker_id
        """,
        {
            "worker_id": worker_id,
            "jobs": [row.job_id for row in rows],
            "attempts": [row.attempt for row in rows],
            "sandboxes": [row.sandbox for row in rows],
            "started": [row.started_at for row in rows],
            "ended": [row.ended_at for row in rows],
            "outcomes": [item.outcome.value for item in decided],
            "errors": [None if row.error is None else json.dumps(row.error) for row in rows],
        },
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
        index = next(
            (i for i, bound in enumerate(MinuteStat.HISTOGRAM_MS) if value <= bound), len(counts) - 1
        )
        counts[index] += 1
    return counts


def _settled_before(
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
        {
            "worker_id": worker_id,
            "jobs": [row.job_id for row in rows],
            "attempts": [row.attempt for row in rows],
        },
    )
    return {(row[0], row[1]): row[2] for row in cursor.fetchall()}
