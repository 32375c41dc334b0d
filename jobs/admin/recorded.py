"""What a member of staff does to jobs, each with its audit row in the same transaction.

Through the API the job's own events say who did what, and there may be thousands a second; of what people do here,
the audit has a row each.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.services import audit
from jobs import continuing, services
from jobs.models import Job
from jobs.services import JobRequest


@transaction.atomic
def submit(request: JobRequest, *, by: Caller, project: Project) -> Job:
    """As `services.submit`."""
    job = services.submit(request, by=by, project=project)
    _record(by, "job.submitted", job)
    return job


@transaction.atomic
def cancel(job_id: UUID, *, by: Caller) -> Job:
    """As `services.cancel`."""
    job = services.cancel(job_id, by=by)
    _record(by, "job.cancelled", job)
    return job


@transaction.atomic
def retry(job_id: UUID, *, by: Caller) -> Job:
    """As `continuing.retry`; the row names both jobs."""
    job = continuing.retry(job_id, by=by)
    _record(by, "job.retried", job, retried_from=str(job_id))
    return job


@transaction.atomic
def fork(job_id: UUID, *, checkpoint: str, given: Mapping[str, Any], by: Caller) -> Job:
    """As `continuing.fork`; the row names both jobs, and which questions were answered anew."""
    job = continuing.fork(job_id, checkpoint=checkpoint, given=given, by=by)
    _record(by, "job.forked", job, forked_from=str(job_id), checkpoint=checkpoint, answered=sorted(given))
    return job


@transaction.atomic
def respond(job_id: UUID, *, by: Caller, answer: Any, question_id: UUID) -> Job:
    """As `services.respond`. The row has no answer: that may be anything, and the question keeps it."""
    job = services.respond(job_id, by=by, answer=answer, question_id=question_id)
    _record(by, "question.answered", job, question=str(question_id))
    return job


def _record(by: Caller, action: str, job: Job, **data: Any) -> None:
    audit(by, action, f"job:{job.id}", project=job.project, **data)
