"""What callers may ask of jobs: submit, cancel, answer, look. One function, one transaction, ORM under a row lock."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from agents import discovery
from agents import services as agents
from agents.models import AgentVersion
from apikeys.callers import Caller
from apikeys.errors import ScopeMissing
from apikeys.models import Project
from engine.logs import log_fields
from jobs import answers, failpoints, inserting, queries, room, wakeups
from jobs.errors import (
    InvalidInput,
    JobAlreadyEnded,
    JobNotFound,
    JobNotWaiting,
    QuestionAlreadyAnswered,
    QuestionClosed,
    QuestionNotFound,
    SeveralQuestionsOpen,
)
from jobs.models import InputFile, Job, Question
from jobs.notifying import links
from jobs.retries import RetryPolicy
from jobs.schemas import faults
from jobs.texts import instant

log = logging.getLogger("engine.jobs")

# The journal key of the question that a weak match asks; agents' own keys never begin with a dot.
AGENT_CHOICE_KEY = ".agent"
NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class StoredUpload:
    """A file of a request whose bytes are in storage already."""

    name: str
    media_type: str
    size: int
    sha256: str
    storage_key: str


@dataclass(frozen=True)
class JobRequest:
    """What a caller wants done. `task` alone is enough."""

    task: str
    agent: str | None = None  # slug, or slug@version
    input: dict[str, Any] = field(default_factory=dict)
    priority: str = Job.Priority.NORMAL
    run_at: datetime | None = None
    timeout_seconds: int | None = None
    deadline_at: datetime | None = None
    max_attempts: int | None = None  # None: as the agent says
    queue: str = "default"
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str = ""
    budget: dict[str, Any] | None = None
    files: Sequence[StoredUpload] = ()
    # Of the job to be: its files are stored under it before it exists.
    id: UUID = field(default_factory=uuid7)


@dataclass(frozen=True)
class Birth:
    """How a job begins: its agent, its first state, and why."""

    version: AgentVersion | None
    status: Job.Status
    reason: str = ""
    explanation: dict[str, Any] | None = None
    candidates: tuple[str, ...] = ()
    unavailable: discovery.Result | None = None  # of a rejected one: who would do it, could it run

    def max_attempts(self, request: "JobRequest") -> int:
        """The caller's word, the agent's, or ours."""
        limits = self.version.limits if self.version else {}
        return request.max_attempts or RetryPolicy.of(limits).max_attempts

    @property
    def error(self) -> dict[str, Any] | None:
        """Of a job that no agent fits, or none that can run."""
        if self.status != Job.Status.REJECTED:
            return None
        found = self.explanation or {}
        nearest = [item["agent"] for item in found.get("nearest") or found.get("results", [])]
        if self.unavailable:
            slug, reason = self.unavailable.version.agent.slug, self.unavailable.health.reason
            return {
                "code": self.reason,
                "message": f"The agent {slug} fits this task and cannot run now.",
                "remedy": f"{reason}. Then submit the task again.",
            }
        return {
            "code": self.reason,
            "message": "Agents fit this task weakly, and the project rejects that."
            if self.reason == "weak_match"
            else "No registered agent fits this task.",
            "remedy": (
                f"The nearest are: {', '.join(nearest)}. Name one with `agent`, or register an agent for it."
            )
            if nearest
            else "Register an agent that can do it, then submit the task again.",
        }


@failpoints.commit("submit")
def submit(request: JobRequest, *, by: Caller, project: Project) -> Job:
    """Store a job and, unless the caller named one, the agent that discovery picked for it, and why.

    No fitting agent gives a `rejected` job, not an error. Raises AgentNotFound for a named agent that is not there and
    InvalidInput when `input` does not fit the agent's schema.
    """
    birth = birth_of(request, by=by, project=project)
    check_input(request, birth.version)
    if birth.status != Job.Status.REJECTED:
        room.claim(project, key=by.key, new_bytes=sum(file.size for file in request.files))
    job = insert(request, birth, by=by, project=project)
    if request.files:
        _add_files(job, request.files)
    if job.status == Job.Status.QUEUED:
        wakeups.queues_filled(job.queue)
    wakeups.jobs_changed(job.id)
    transaction.on_commit(lambda: _note_submitted(job))
    return job


def _note_submitted(job: Job) -> None:
    """The line by which a job leads to its request."""
    with log_fields(job=job.id):
        log.info("A job was submitted: it is %s.", job.status)


def _add_files(job: Job, files: Sequence[StoredUpload]) -> None:
    InputFile.objects.bulk_create(
        InputFile(
            job=job,
            name=upload.name,
            media_type=upload.media_type,
            size=upload.size,
            sha256=upload.sha256,
            storage_key=upload.storage_key,
        )
        for upload in files
    )


def check_input(request: JobRequest, version: AgentVersion | None) -> None:
    """Raise InvalidInput when `input` does not fit the agent's schema."""
    wrong = faults(request.input, version.input_schema, at="/input") if version else []
    if version and wrong:
        raise InvalidInput(f"The input does not fit agent {version.agent.slug}.", errors=wrong)


def scheduled_or_queued(birth: Birth, request: JobRequest) -> Birth:
    """The same beginning for a request with a time of its own."""
    if birth.status not in (Job.Status.SCHEDULED, Job.Status.QUEUED):
        return birth
    return replace(birth, status=Job.Status.SCHEDULED if request.run_at is not None else Job.Status.QUEUED)


def birth_of(request: JobRequest, *, by: Caller, project: Project) -> Birth:
    """Which agent does it, and so where the job begins. Raises AgentNotFound for a named one that is not there."""
    first = Job.Status.SCHEDULED if request.run_at is not None else Job.Status.QUEUED
    if request.agent:
        version = agents.resolve(by, request.agent)
        return Birth(version, first, explanation={"decision": "named", "agent": request.agent})
    # Nobody waits for a model that is not there: the next agent that fits does it, or the job is rejected at once.
    filters = discovery.Filters(slugs=by.runs_only(), available_only=True)
    found = discovery.discover(by, request.task, filters=filters)
    explanation = found.as_json()
    if found.unavailable:
        rejected = Birth(None, Job.Status.REJECTED, "agent_unavailable", explanation)
        return replace(rejected, unavailable=found.unavailable)
    if not found.results:
        return Birth(None, Job.Status.REJECTED, "no_match", explanation)
    if found.decision == "weak_match" and project.on_weak_match == "reject":
        return Birth(None, Job.Status.REJECTED, "weak_match", explanation)
    if found.decision == "weak_match" and project.on_weak_match == "ask":
        candidates = tuple(result.version.agent.slug for result in found.results)
        return Birth(None, Job.Status.WAITING_FOR_INPUT, "question", explanation, candidates)
    return Birth(found.results[0].version, first, explanation=explanation)


def insert(request: JobRequest, birth: Birth, *, by: Caller, project: Project) -> Job:
    """Insert a job with its first events."""
    if not birth.candidates:
        at = inserting.insert_all([(request, birth)], by=by, project=project)
        return _born(request, birth, by=by, project=project, at=at or database_time())
    job = _born(request, birth, by=by, project=project, at=database_time())
    with inserting.job_span((request, birth)) as span:
        job.traceparent = span.traceparent
        job.save(force_insert=True)
    job.last_seq = 0
    with connection.cursor() as cursor:
        _ask_for_agent(cursor, job, birth.candidates)
        queries.append_event(cursor, job, "job.waiting", data={"reason": birth.reason})
    Job.objects.filter(id=job.id).update(last_seq=job.last_seq)
    return job


def _born(request: JobRequest, birth: Birth, *, by: Caller, project: Project, at: datetime) -> Job:
    """The job as it is stored."""
    due = max(at, request.run_at) if request.run_at else at
    return Job(
        id=request.id,
        project=project,
        agent_version=birth.version,
        queue=request.queue,
        task=request.task,
        input=request.input,
        status=birth.status,
        status_reason=birth.reason,
        priority=request.priority,
        sort_at=sort_time(due, request.priority),
        run_at=request.run_at,
        max_attempts=birth.max_attempts(request),
        timeout_seconds=request.timeout_seconds,
        deadline_at=request.deadline_at,
        tags=request.tags,
        metadata=request.metadata,
        webhook_url=request.webhook_url,
        budget=request.budget,
        discovery=birth.explanation,
        created_by=by.label,
        created_by_key=by.key.id if by.key else None,
        created_at=at,
        finished_at=at if birth.status == Job.Status.REJECTED else None,
        error=birth.error,
        last_seq=1,
    )


def _ask_for_agent(cursor: Any, job: Job, candidates: Sequence[str]) -> None:
    choices = [*candidates, NONE_OF_THESE]
    question = Question.objects.create(
        job=job,
        project_id=job.project_id,
        attempt=0,
        key=AGENT_CHOICE_KEY,
        kind=Question.Kind.CHOICE,
        prompt="No agent fits this task well. Which one should do it?",
        choices=choices,
        schema={"enum": choices},
    )
    data = {"question_id": str(question.id), "key": question.key, "kind": question.kind}
    queries.append_event(cursor, job, "question.opened", message=question.prompt, data=data)


def sort_time(due: datetime, priority: str) -> datetime:
    """A job's place: when it is due, less its priority's credit."""
    return due - timedelta(seconds=Job.CREDIT_SECONDS[priority])


def database_time() -> datetime:
    """The one clock (I5)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


def get(job_id: UUID, *, by: Caller) -> Job:
    """A job that this caller may see. Raises JobNotFound."""
    jobs = Job.objects.visible_to(by).select_related("agent_version__agent")
    # An agent's code is large, and whoever asks for a job seldom wants it.
    job = jobs.defer("agent_version__source", "agent_version__instructions").filter(id=job_id).first()
    if job is None:
        raise JobNotFound(job_id=str(job_id))
    return job


def locked(job_id: UUID, *, by: Caller) -> Job:
    """The job under its row lock: whoever holds it alone may change a job that is not running. Raises JobNotFound."""
    _lock_parent(job_id)
    job = Job.objects.visible_to(by).select_for_update(no_key=True).filter(id=job_id).first()
    if job is None:
        raise JobNotFound(job_id=str(job_id))
    return job


def _lock_parent(job_id: UUID) -> None:
    """Locks go parent before child: ending a child may wake its parent."""
    Job.objects.select_for_update(no_key=True).filter(children=job_id).order_by().values_list("id").first()


@failpoints.commit("cancel")
def cancel(job_id: UUID, *, by: Caller) -> Job:
    """End a job. A running one is told to stop and ends within seconds: until then its status stays `running`.

    Idempotent. Raises JobNotFound, or JobAlreadyEnded when it ended any other way.
    """
    job = locked(job_id, by=by)
    if job.status == Job.Status.CANCELLED:
        return job
    if job.is_final:
        raise JobAlreadyEnded(f"The job is {job.status}.", job_id=str(job.id), job_status=job.status)
    if job.cancel_requested_at is None:
        job.cancel_requested_at = database_time()
        job.cancel_requested_by = by.label
    if job.status == Job.Status.RUNNING:
        # Only its lease holder writes for a running job (I6): it hears this by notify and with each heartbeat.
        job.save(update_fields=["cancel_requested_at", "cancel_requested_by"])
        wakeups.cancel_requested(job.id)
    else:
        _end(job, Job.Status.CANCELLED, "cancelled", by=by.label)
    return job


def _end(
    job: Job, status: Job.Status, reason: str, *, error: dict[str, Any] | None = None, by: str = ""
) -> None:
    """Give a job that is not running its final state. The caller holds the row lock."""
    job.status, job.status_reason, job.error = status, reason, error
    with connection.cursor() as cursor:
        queries.supersede_questions(cursor, job.id)
        level = "error" if status == Job.Status.FAILED else "warning"
        message = str(error["message"]) if error else ""
        data = {"reason": reason} | ({"by": by} if by else {})
        queries.append_event(cursor, job, f"job.{status.value}", message=message, level=level, data=data)
    job.finished_at = database_time()
    job.save(
        update_fields=[
            "status",
            "status_reason",
            "error",
            "last_seq",
            "finished_at",
            "cancel_requested_at",
            "cancel_requested_by",
        ]
    )
    for child in job.children.select_for_update(no_key=True).filter(finished_at__isnull=True).order_by("id"):
        _stop_child(child, by=by)
    if job.parent_id is not None:
        with connection.cursor() as cursor:
            queries.requeue_if_free(cursor, [job.parent_id])
    wakeups.jobs_changed(job.id)


def _stop_child(child: Job, *, by: str) -> None:
    """Nobody waits for this job any more."""
    if child.status != Job.Status.RUNNING:
        _end(child, Job.Status.CANCELLED, "parent_ended", by=by)
    elif child.cancel_requested_at is None:
        child.cancel_requested_at, child.cancel_requested_by = database_time(), by
        child.save(update_fields=["cancel_requested_at", "cancel_requested_by"])
        wakeups.cancel_requested(child.id)


@failpoints.commit("respond")
def respond(
    job_id: UUID,
    *,
    by: Caller,
    answer: Any = None,
    question_id: UUID | None = None,
    by_question: Mapping[UUID, Any] | None = None,
) -> Job:
    """Store a person's answers; the last open question re-queues the job in the same transaction at its old place.

    Give `answer` alone when one question is open, `answer` with `question_id`, or several in `by_question`. All are
    stored or none. Raises JobNotFound, JobNotWaiting, QuestionNotFound, SeveralQuestionsOpen,
    QuestionAlreadyAnswered, QuestionClosed and InvalidAnswer.
    """
    job = locked(job_id, by=by)
    given = dict(by_question or {})
    for target, value in given.items():
        _record_answer(job, target, value, by=by, at=f"/answers/{target}")
    if not given:
        _record_answer(job, _meant(job, question_id), answer, by=by, at="/answer")
    _resume_if_answered(job)
    wakeups.jobs_changed(job.id)
    return job


def _meant(job: Job, question_id: UUID | None) -> UUID:
    """Which question an answer is for."""
    if question_id is not None:
        return question_id
    open_ones = list(job.questions.filter(status=Question.Status.OPEN).order_by("id"))
    if not open_ones:
        raise JobNotWaiting(f"The job is {job.status} and has no open question.", **_last_answer(job))
    if len(open_ones) > 1:
        raise SeveralQuestionsOpen(
            "Say which one with `question_id`, or answer several with `answers`.",
            questions=[{"id": str(item.id), "prompt": item.prompt} for item in open_ones],
        )
    return open_ones[0].id


def _last_answer(job: Job) -> dict[str, Any]:
    """Who answered last, for somebody who came too late."""
    last = job.questions.filter(status=Question.Status.ANSWERED).order_by("-answered_at").first()
    return {"job_status": job.status} | (answer_trace(last) if last else {})


def answer_trace(question: Question) -> dict[str, Any]:
    """Who answered, through which door, and when: what a refusal tells somebody who came second."""
    return {
        "answered_by": question.answered_by,
        "answered_via": question.answered_via,
        "answered_at": instant(question.answered_at) if question.answered_at else None,
    }


def _record_answer(job: Job, question_id: UUID, value: Any, *, by: Caller, at: str) -> None:
    question = job.questions.filter(id=question_id).first()
    if question is None:
        raise QuestionNotFound(question_id=str(question_id))
    if question.status == Question.Status.ANSWERED:
        raise QuestionAlreadyAnswered(f"{question.answered_by} was first.", **answer_trace(question))
    if question.status != Question.Status.OPEN:
        raise QuestionClosed(
            f"The question is {question.status}; the job is {job.status}.", job_status=job.status
        )
    needed = question.details.get("needs_scope")
    if needed is not None and not by.may(needed):
        raise ScopeMissing("This question is for whoever may change the key's budget", missing_scope=needed)
    question.answer = answers.checked(question, value, at=at)
    question.status = Question.Status.ANSWERED
    question.answered_by, question.answered_via = by.label, by.via
    question.answered_at = database_time()
    question.save(update_fields=["answer", "status", "answered_by", "answered_via", "answered_at"])
    data = {
        "question_id": str(question.id),
        "key": question.key,
        "answer": question.answer,
        "by": by.label,
        "via": by.via,
    }
    with connection.cursor() as cursor:
        queries.append_event(cursor, job, "question.answered", message=question.prompt, data=data)
    job.save(update_fields=["last_seq"])
    if question.key == AGENT_CHOICE_KEY:
        _take_agent(job, question)


def _take_agent(job: Job, question: Question) -> None:
    """A person said which agent does the job that none fitted well."""
    if question.answer == NONE_OF_THESE:
        error = {
            "code": "no_match",
            "message": "No registered agent fits this task.",
            "remedy": "Register one.",
        }
        _end(job, Job.Status.FAILED, "no_match", error=error)
        return
    staff = Caller(project=job.project, scopes=frozenset())
    job.agent_version = agents.resolve(staff, str(question.answer))
    job.save(update_fields=["agent_version"])


def _resume_if_answered(job: Job) -> None:
    """Queue the job again when nothing is open any more; it keeps its sort_at, and so its place."""
    if (
        job.status != Job.Status.WAITING_FOR_INPUT
        or job.questions.filter(status=Question.Status.OPEN).exists()
    ):
        return
    if job.children.filter(finished_at__isnull=True).exists():
        # It is nobody's turn to answer any more, and whoever watches for a question can tell.
        job.status_reason = "child_job"
        job.save(update_fields=["status_reason"])
        return
    job.status, job.status_reason = Job.Status.QUEUED, "answered"
    with connection.cursor() as cursor:
        queries.append_event(cursor, job, "job.queued", data={"reason": "answered"})
    job.save(update_fields=["status", "status_reason", "last_seq"])
    wakeups.queues_filled(job.queue)


@failpoints.commit("expire")
def expire_question(job_id: UUID, question_id: UUID) -> None:
    """Close a question whose time is up: its default is taken, or the job fails. Never recorded as anybody's answer."""
    _lock_parent(job_id)
    job = (
        Job.objects.select_for_update(no_key=True)
        .filter(id=job_id, status=Job.Status.WAITING_FOR_INPUT)
        .first()
    )
    question = Question.objects.filter(id=question_id, status="open", expires_at__lte=Now()).first()
    if job is None or question is None:
        return  # answered, or ended, in the meantime
    takes_default = question.on_timeout == Question.OnTimeout.DEFAULT
    question.status = Question.Status.EXPIRED
    question.answer = question.default if takes_default else None
    question.save(update_fields=["status", "answer"])
    with connection.cursor() as cursor:
        data = {"question_id": str(question.id), "key": question.key, "default_taken": takes_default}
        queries.append_event(
            cursor, job, "question.expired", message=question.prompt, level="warning", data=data
        )
    job.save(update_fields=["last_seq"])
    if takes_default:
        _resume_if_answered(job)
        wakeups.jobs_changed(job.id)
    else:
        error = {
            "code": "question_expired",
            "message": f"Nobody answered in time: {question.prompt}",
            "remedy": "Submit the job again, and answer before the question's time is up.",
        }
        _end(job, Job.Status.FAILED, "question_expired", error=error)


@failpoints.commit("remind")
def remind(job_id: UUID, question_id: UUID) -> None:
    """Remind of a question whose next reminder is due: its event, and what is sent, once for each time asked for."""
    job = (
        Job.objects.select_for_update(no_key=True)
        .filter(id=job_id, status=Job.Status.WAITING_FOR_INPUT)
        .first()
    )
    question = Question.objects.filter(id=question_id, status="open", remind_at__lte=Now()).first()
    if job is None or question is None:
        return  # answered, ended, or another worker was first
    spans = question.remind_after
    asked_at, now = question.created_at, database_time()
    # After an outage one reminder stands for all that fell into it.
    question.reminded = sum(asked_at + timedelta(seconds=span) <= now for span in spans)
    left = spans[question.reminded :]
    question.remind_at = asked_at + timedelta(seconds=left[0]) if left else None
    question.save(update_fields=["reminded", "remind_at"])
    with connection.cursor() as cursor:
        data = {"question_id": str(question.id), "key": question.key, "reminder": question.reminded}
        queries.append_event(cursor, job, "question.reminder", message=question.prompt, data=data)
    job.save(update_fields=["last_seq"])
    wakeups.jobs_changed(job.id)


def answer_link(
    question_id: UUID, *, by: Caller, holder: str = "", expires_in_s: int | None = None
) -> links.AnswerLink:
    """A link to answer this question, in the name of `holder` or the caller.

    Raises QuestionNotFound, QuestionClosed.
    """
    question = Question.objects.visible_to(by).filter(id=question_id).first()
    if question is None:
        raise QuestionNotFound(question_id=str(question_id))
    if question.status != Question.Status.OPEN:
        raise QuestionClosed(f"The question is {question.status}.", **answer_trace(question))
    span = links.lifetime() if expires_in_s is None else timedelta(seconds=expires_in_s)
    expires_at = (database_time() + span).replace(microsecond=0)
    key_id = by.key.id if by.key else None
    return links.AnswerLink(question.id, holder or by.label, expires_at, key_id)
