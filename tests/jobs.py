"""Rows for tests of jobs: a project, an agent, queued jobs, a worker with a lease, and batches to write."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db import connection
from django.utils import timezone
from uuid_utils.compat import uuid7

from agents.models import Agent, AgentVersion
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from jobs import batch, claiming, queries, services
from jobs.batch import Batch, EventRow, StepRow
from jobs.execution.outcomes import QuestionSpec
from jobs.models import Attempt, Event, Job, Worker
from jobs.settlements import Settlement


def make_project(slug: str = "acme", **fields: Any) -> Project:
    """A project, made once per test and slug."""
    return Project.objects.get_or_create(slug=slug, defaults={"name": slug, **fields})[0]


def make_caller(project: Project | None = None) -> Caller:
    """A caller of a project with every right on jobs."""
    return Caller(project=project or make_project(), scopes=frozenset(Scope), user_name="tester")


def make_version(slug: str = "echo", kind: str = "noop", **fields: Any) -> AgentVersion:
    """The current version of a shared agent."""
    agent, _ = Agent.objects.get_or_create(slug=slug, project=None)
    if agent.current_version is None:
        number = AgentVersion.objects.filter(agent=agent).count() + 1
        version = AgentVersion.objects.create(
            agent=agent,
            number=number,
            name=slug,
            description=slug,
            kind=kind,
            content_hash=str(uuid4()),
            **fields,
        )
        agent.current_version = version
        agent.save(update_fields=["current_version"])
    assert agent.current_version is not None
    return agent.current_version


def make_job(project: Project | None = None, **fields: Any) -> Job:
    """A queued job for the echo agent."""
    make_version(fields.pop("agent", "echo"))
    request = services.JobRequest(task="do it", agent="echo", **fields)
    project = project or make_project()
    return services.submit(request, by=make_caller(project), project=project)


def make_worker() -> UUID:
    """A registered worker with a fresh lease."""
    worker_id = uuid4()
    queries.register_worker(queries.WorkerInfo(worker_id, "test", 1, "0", ["default"], 8))
    return worker_id


def end_lease(worker_id: UUID) -> None:
    """Let a worker's lease run out, as if it had died a while ago."""
    Worker.objects.filter(id=worker_id).update(lease_until=timezone.now() - timedelta(seconds=1))


def sweep() -> queries.Swept:
    """Sweep as if the database had been up for long."""
    return queries.sweep(after_start=0)


def claim_one(worker_id: UUID) -> claiming.Claimed:
    """Claim one job of the default queue."""
    (job,) = claiming.claim(worker_id, queue="default", limit=1)
    return job


def log_line(job: claiming.Claimed, offset: int = 1, message: str = "hello") -> EventRow:
    """The log event that comes `offset` numbers after the claim."""
    return EventRow(
        job.id, job.attempt, job.last_seq + offset, timezone.now(), "log", "stdout", "info", message, None
    )


def step_row(
    job: claiming.Claimed, key: str, *, ended: bool, result: Any = None, ordinal: int = 1, kind: str = "step"
) -> StepRow:
    """A journal entry, begun or ended."""
    now = timezone.now()
    end = (now, json.dumps(result)) if ended else (None, None)
    return StepRow(job.id, job.attempt, key, ordinal, kind, "", False, now, *end)


def settlement(
    job: claiming.Claimed,
    status: Job.Status = Job.Status.COMPLETED,
    outcome: Attempt.Outcome = Attempt.Outcome.COMPLETED,
    *,
    offset: int = 1,
    result: str | None = None,
    **fields: Any,
) -> Settlement:
    """How an attempt ends, its event coming `offset` numbers after the claim."""
    return Settlement(
        job_id=job.id,
        attempt=job.attempt,
        project_id=job.project_id,
        agent_id=uuid7(),
        queue=job.queue,
        next_seq=job.last_seq + offset,
        outcome=outcome,
        status=status,
        reason=fields.pop("reason", ""),
        due_at=job.due_at,
        started_at=job.started_at,
        ended_at=timezone.now().timestamp(),
        result=result if status == Job.Status.COMPLETED else None,
        **fields,
    )


def write(worker_id: UUID, *, events: Any = (), steps: Any = (), settlements: Any = ()) -> batch.Written:
    """Write one batch."""
    return batch.write(
        worker_id, Batch(events=list(events), steps=list(steps), settlements=list(settlements))
    )


def ask(worker_id: UUID, job: claiming.Claimed, *questions: QuestionSpec) -> batch.Written:
    """Suspend a claimed job with questions."""
    row = settlement(
        job, Job.Status.WAITING_FOR_INPUT, Attempt.Outcome.SUSPENDED, reason="question", questions=questions
    )
    return write(worker_id, settlements=[row])


def question(key: str = "ask#1", **fields: Any) -> QuestionSpec:
    """A free-text question."""
    return QuestionSpec(
        **{"key": key, "kind": "text", "prompt": "Why?", "schema": {"type": "string"}, **fields}
    )


def seqs(job_id: UUID) -> list[int]:
    """The numbers of a job's events, in order."""
    return list(Event.objects.filter(job_id=job_id).order_by("seq").values_list("seq", flat=True))


def types(job_id: UUID) -> list[str]:
    """The types of a job's events, in order."""
    return list(Event.objects.filter(job_id=job_id).order_by("seq").values_list("type", flat=True))


def forget_everything() -> None:
    """Delete all jobs and workers: sooner done than the truncation after a test, for tests that begin many times."""
    tables = (
        "delivery",
        "event",
        "step",
        "attempt",
        "minutestat",
        "hourstat",
        "artifact",
        "inputfile",
        "question",
        "job",
        "queue",
        "worker",
    )
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM jobs_{table}")
