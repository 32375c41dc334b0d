"""What an attempt needs to begin: the agent's version, the input files, and the journal of earlier attempts."""

from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import connection

from agents.models import AgentVersion
from engine import meters
from jobs import claiming, models, usage
from jobs.claiming import Claimed
from jobs.execution.outcomes import StoredFile, Used
from jobs.execution.ports import AgentSpec, ClaimedJob, InputFile, Journal, JournalStep


def claim(worker_id: UUID, **wanted: Any) -> list[tuple[Claimed, AgentSpec]]:
    """Claim jobs (`claiming.claim`), each with the agent that it is pinned to."""
    with meters.CLAIM_SECONDS.time():
        jobs = claiming.claim(worker_id, **wanted)
    meters.CLAIMS.labels("some" if jobs else "none").inc()
    meters.CLAIMED_JOBS.inc(len(jobs))
    meters.EVENTS.inc(len(jobs))  # each claim tells job.started
    return [(job, _agent(job.agent_version_id)) for job in jobs]


def claimed_again(worker_id: UUID, job_id: UUID, attempt: int) -> tuple[Claimed, AgentSpec] | None:
    """What an earlier claim took (`claiming.claimed_again`), with its agent."""
    job = claiming.claimed_again(worker_id, job_id, attempt)
    return None if job is None else (job, _agent(job.agent_version_id))


def details(job: Claimed, agent: AgentSpec) -> ClaimedJob:
    """Everything that one attempt of this job is run with."""
    lines, size = _logged(job.id) if job.attempt > 1 else (0, 0)
    return ClaimedJob(
        id=job.id,
        project_id=job.project_id,
        attempt=job.attempt,
        task=job.task,
        input=job.input,
        agent=agent,
        files=_files(job.id),
        journal=_journal(job.id) if job.attempt > 1 or job.seed else Journal(),
        seed=job.seed,
        artifacts=_artifacts(job.id) if job.attempt > 1 else {},
        timeout_seconds=job.timeout_seconds,
        logged_lines=lines,
        logged_bytes=size,
        parked=_parked(job.id, job.attempt) if job.attempt > 1 else "",
        budget=job.budget,
        used=usage.of_family(job.id) if agent.kind == "llm" and job.attempt > 1 else Used(),
    )


@lru_cache(maxsize=256)  # versions are immutable
def _agent(version_id: UUID) -> AgentSpec:
    version = AgentVersion.objects.select_related("agent").get(id=version_id)
    return AgentSpec(
        agent_id=version.agent_id,
        slug=version.agent.slug,
        number=version.number,
        kind=version.kind,
        source=version.source,
        requirements=tuple(version.requirements),
        limits=version.limits,
        output_schema=version.output_schema or None,
        instructions=version.instructions,
        model=version.model,
        tools=tuple(version.tools),
        settings=version.settings,
    )


def _files(job_id: UUID) -> tuple[InputFile, ...]:
    rows = models.InputFile.objects.filter(job_id=job_id).order_by("name")
    return tuple(InputFile(row.name, row.storage_key, row.size, row.sha256, row.media_type) for row in rows)


def _journal(job_id: UUID) -> Journal:
    """Answers of questions that are closed for good; those of open ones are still to come."""
    steps = models.Step.objects.filter(job_id=job_id).order_by("ordinal", "begun_at", "key")
    closed = models.Question.objects.filter(job_id=job_id, status__in=["answered", "expired"])
    return Journal(
        steps=tuple(_step(row) for row in steps),
        answers={question.key: question.answer for question in closed},
    )


def _artifacts(job_id: UUID) -> dict[str, str]:
    return dict(models.Artifact.objects.filter(job_id=job_id).values_list("name", "sha256"))


def _parked(job_id: UUID, attempt: int) -> str:
    """The sandbox of the attempt before this one, if that one began to wait in it."""
    before = models.Attempt.objects.filter(job_id=job_id, number=attempt - 1, outcome="suspended")
    return before.values_list("sandbox", flat=True).first() or ""


def _step(row: models.Step) -> JournalStep:
    return JournalStep(
        key=row.key,
        kind=row.kind,
        signature=row.signature,
        once=row.once,
        ended=row.ended_at is not None,
        result=row.result,
        files=tuple(StoredFile(**_known(file)) for file in row.files),
        deleted=tuple(row.deleted),
    )


def _known(file: dict[str, Any]) -> dict[str, Any]:
    return {name: file[name] for name in ("path", "size", "sha256", "storage_key")}


def _logged(job_id: UUID) -> tuple[int, int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), coalesce(sum(octet_length(message)), 0) FROM jobs_event"
            " WHERE job_id = %s AND type = 'log'",
            [job_id],
        )
        lines, size = cursor.fetchone()
    return int(lines), int(size)
