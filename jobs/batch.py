"""What a worker writes for its running jobs, many jobs in one durable commit.

A batch is repeatable: after a lost connection at commit the same batch is sent again. Events and steps meet only rows
of their own attempt then, and a settlement that had gone through is recognised by its attempt row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.backends.utils import CursorWrapper

from jobs import failpoints, usage
from jobs.queries import lock_lease, plain_array
from jobs.settlements import AttemptKey, Settlement, lock, settle, settled_before
from jobs.usage import UsageRow


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
    started_at: float  # seconds since 1970


@dataclass
class Batch:
    """Everything waiting to be written. Order within one job is kept; a settlement is always its job's last."""

    events: list[EventRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    progress: dict[AttemptKey, ProgressRow] = field(default_factory=dict)
    sandboxes: list[SandboxRow] = field(default_factory=list)
    usages: list[UsageRow] = field(default_factory=list)
    durable_steps: set[AttemptKey] = field(default_factory=set)  # whose lost_count goes back to 0
    settlements: list[Settlement] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.events
            or self.steps
            or self.artifacts
            or self.progress
            or self.sandboxes
            or self.usages
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
            *self.usages,
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
            usages=[row for row in self.usages if (row.job_id, row.attempt) == key],
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
        ending = lock(cursor, worker_id, batch.settlements)
        refused = batch.attempts() - ending.keys()
        refused -= _held(cursor, worker_id, refused - {row.key for row in batch.settlements})
        _insert_events(cursor, worker_id, batch.events)
        _upsert_steps(cursor, worker_id, batch.steps)
        _upsert_artifacts(cursor, worker_id, batch.artifacts)
        _update_jobs(cursor, worker_id, batch)
        _note_sandboxes(cursor, worker_id, batch.sandboxes)
        usage.insert(cursor, worker_id, batch.usages, fence=FENCE)
        settled, queues = settle(cursor, worker_id, batch.settlements, ending)
        ours = settled_before(cursor, worker_id, [row for row in batch.settlements if row.key in refused])
        return Written(refused=refused - ours.keys(), settled=settled | ours, queues=queues)


# The fence (I3): every write matches job, attempt, worker and state. The worker's row is locked, so what it finds
# stays true to the end of the transaction.
FENCE = """
JOIN jobs_job AS job ON job.id = given.job_id AND job.attempt = given.attempt
 AND job.worker_id = %(worker_id)s AND job.status = 'running'
"""


def _held(cursor: CursorWrapper, worker_id: UUID, attempts: set[AttemptKey]) -> set[AttemptKey]:
    if not attempts:
        return set()
    keys = list(attempts)
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
                "jobs": plain_array(row.job_id for row in rows),
                "seqs": plain_array(row.seq for row in rows),
                "attempts": plain_array(row.attempt for row in rows),
                "ats": plain_array(row.at.isoformat() for row in rows),
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
   SET ended_at = CASE WHEN excluded.ended_at IS NOT NULL THEN greatest(excluded.ended_at, jobs_step.begun_at) END,
       result = excluded.result,
       files = excluded.files, deleted = excluded.deleted, attempt = excluded.attempt
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
            SELECT given.job_id, given.attempt, %(worker_id)s, given.sandbox, to_timestamp(given.started_at), 'running'
              FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(sandboxes)s::text[], %(started)s::float8[])
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
