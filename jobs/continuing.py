"""New jobs that go on from an old one's journal: retry from its end, or fork from a chosen checkpoint.

The old job stays as it ended. Its files are shared, not copied: retention keeps a job while another continues it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from uuid_utils.compat import uuid7

from apikeys.callers import Caller
from engine.problems import pointer_part
from jobs import answers, failpoints, inserting, queries, room, services, wakeups
from jobs.errors import CheckpointNotFound, JobNotRetryable
from jobs.models import InputFile, Job, Question, Step


@dataclass(frozen=True)
class Checkpoint:
    """A journal entry that a new job can go on from."""

    key: str
    kind: str  # step | ask | value
    ended_at: datetime
    result: Any
    files: int


def checkpoints(job_id: UUID, *, by: Caller) -> list[Checkpoint]:
    """The entries of a job's journal that have a durable end, in order. Raises JobNotFound."""
    job = services.get(job_id, by=by)
    ended = Step.objects.filter(job_id=job.id, ended_at__isnull=False).order_by("ordinal")
    return [
        Checkpoint(row.key, row.kind, row.ended_at, (row.result or {}).get("value"), len(row.files))
        for row in ended
        if row.ended_at is not None
    ]


@failpoints.commit("retry")
def retry(job_id: UUID, *, by: Caller) -> Job:
    """A new job that continues a failed or cancelled one from its last durable entry.

    Raises JobNotFound, and JobNotRetryable when the job has not ended so, or never had an agent.
    """
    old = services.locked(job_id, by=by)  # so that retention does not take it away meanwhile
    if old.status not in (Job.Status.FAILED, Job.Status.CANCELLED) or old.agent_version_id is None:
        raise JobNotRetryable(f"The job is {old.status}.", job_status=old.status)
    return _continue(old, Step.objects.filter(job_id=old.id).count(), by=by, reason="retried")


@failpoints.commit("fork")
def fork(job_id: UUID, *, checkpoint: str, given: Mapping[str, Any], by: Caller) -> Job:
    """A new job that goes on from one checkpoint of another, with other answers to questions up to there.

    `given` maps journal keys of asks to answers. Raises JobNotFound, JobNotRetryable, CheckpointNotFound and
    InvalidAnswer.
    """
    old = services.locked(job_id, by=by)
    if not old.is_final or old.agent_version_id is None:
        raise JobNotRetryable(
            f"The job is {old.status}: only an ended one can be forked.", job_status=old.status
        )
    at = Step.objects.filter(job_id=old.id, key=checkpoint, ended_at__isnull=False).first()
    if at is None:
        raise CheckpointNotFound(f"The job has no finished step {checkpoint!r}.", checkpoint=checkpoint)
    new = _continue(old, at.ordinal, by=by, reason="forked")
    for key, value in given.items():
        _answer_anew(new, key, value, by=by)
    return new


def _continue(old: Job, most: int, *, by: Caller, reason: str) -> Job:
    room.claim(old.project, key=by.key)
    now = services.database_time()
    new = Job(
        id=uuid7(),
        project=old.project,
        agent_version_id=old.agent_version_id,
        queue=old.queue,
        task=old.task,
        input=old.input,
        status=Job.Status.QUEUED,
        status_reason=reason,
        priority=old.priority,
        sort_at=services.sort_time(now, old.priority),
        max_attempts=old.max_attempts,
        timeout_seconds=old.timeout_seconds,
        tags=old.tags,
        metadata=old.metadata,
        webhook_url=old.webhook_url,
        budget=old.budget,
        discovery=old.discovery,
        created_by=by.label,
        created_by_key=by.key.id if by.key else None,
        created_at=now,
        retried_from=old,
        seed=old.seed or str(old.id),
        last_seq=1,
    )
    with inserting.span_of(new.id, new.status, new.queue, link=old.traceparent) as span:
        new.traceparent = span.traceparent
        new.save(force_insert=True)
    with connection.cursor() as cursor:
        new.last_seq = 0
        queries.append_event(cursor, new, "job.queued", data={"reason": reason, "from": str(old.id)})
        _copy_journal(cursor, old.id, new.id, most)
    _copy_rows(old, new, most)
    wakeups.queues_filled(new.queue)
    wakeups.jobs_changed(new.id)
    return new


def _copy_journal(cursor: Any, old_id: UUID, new_id: UUID, most: int) -> None:
    """The first `most` entries. What had only begun is left out, but for asks, whose answer may be there already, and
    for `once`: whether it ran stays a question."""
    cursor.execute(
        """
        INSERT INTO jobs_step (job_id, key, ordinal, kind, signature, once, attempt, begun_at, ended_at, result, files,
                               deleted)
        SELECT %s, key, ordinal, kind, signature, once, 0, begun_at, ended_at, result, files, deleted
          FROM jobs_step WHERE job_id = %s AND ordinal <= %s AND (ended_at IS NOT NULL OR once OR kind = 'ask')
        """,
        [new_id, old_id, most],
    )


def _copy_rows(old: Job, new: Job, most: int) -> None:
    """Input files, and the closed questions whose asks were copied."""
    InputFile.objects.bulk_create(
        InputFile(
            job=new,
            name=file.name,
            media_type=file.media_type,
            size=file.size,
            sha256=file.sha256,
            storage_key=file.storage_key,
        )
        for file in old.input_files.all()
    )
    keys = Step.objects.filter(job_id=new.id, ordinal__lte=most).values_list("key", flat=True)
    for question in old.questions.filter(status__in=("answered", "expired"), key__in=list(keys)):
        question.pk = uuid7()
        question.job = new
        question.save(force_insert=True)


def _answer_anew(job: Job, key: str, value: Any, *, by: Caller) -> None:
    """Replace a copied answer: the entry that took the old one is opened again, and so are those after it."""
    question = Question.objects.filter(job=job, key=key).first()
    if question is None:
        raise CheckpointNotFound(f"No question {key!r} was answered before this checkpoint.", checkpoint=key)
    answer = answers.checked(question, value, at=f"/answers/{pointer_part(key)}")
    asked = Step.objects.get(job_id=job.id, key=key)
    Step.objects.filter(job_id=job.id, ordinal__gte=asked.ordinal).delete()
    question.delete()
    question.answer, question.answered_by, question.answered_via = answer, by.label, by.via
    question.status, question.answered_at = Question.Status.ANSWERED, services.database_time()
    question.save(force_insert=True)
