"""What a message says. Made anew for each try from rows that do not change any more, so each try says the same."""

import json
from typing import Any
from uuid import UUID

from django.conf import settings

from jobs.models import Job, Question
from jobs.notifying import links
from jobs.notifying.models import PING, Delivery
from jobs.serializers import QuestionSerializer, job_url
from jobs.texts import instant

# A result larger than this as text is left out, and `result_omitted` is true: the job has it.
MOST_RESULT_CHARS = 64 * 1024
REMINDERS = ("question.opened", "question.reminder")


class Gone(Exception):
    """The rows that the message tells of were deleted: there is nothing to say."""


def document(delivery: Delivery) -> dict[str, Any]:
    """The body of a webhook: type, time, and the job and question it is about. Raises Gone."""
    return {
        "type": delivery.event,
        "timestamp": instant(delivery.created_at),
        "data": {} if delivery.event == PING else _data(delivery),
    }


def _data(delivery: Delivery) -> dict[str, Any]:
    jobs = Job.objects.select_related("agent_version__agent")
    job = jobs.defer("agent_version__source", "input").filter(id=str(delivery.job_id)).first()
    if job is None:
        raise Gone
    if delivery.question_id is None:
        return {"job": _job(job, delivery.data)}
    question = question_of(delivery)
    return {"job": _lasting(job), "question": _question(question, delivery)}


def question_of(delivery: Delivery) -> Question:
    """The question that a message is about. Raises Gone."""
    question = Question.objects.filter(id=str(delivery.question_id)).first()
    if question is None:
        raise Gone
    return question


def _job(job: Job, moment: dict[str, Any]) -> dict[str, Any]:
    """The job's lasting parts, and its state at the moment that is told."""
    told = _lasting(job) | moment
    if moment["status"] in Job.FINAL:
        is_large = len(json.dumps(job.result)) > MOST_RESULT_CHARS
        told |= {
            "finished_at": instant(job.finished_at) if job.finished_at else None,
            "error": job.error,
            "result": None if is_large else job.result,
            "result_omitted": is_large,
        }
    return told


def _lasting(job: Job) -> dict[str, Any]:
    version = job.agent_version
    return {
        "id": str(job.id),
        "task": job.task,
        "agent": {"slug": version.agent.slug, "version": version.number} if version else None,
        "tags": job.tags,
        "metadata": job.metadata,
        "created_at": instant(job.created_at),
        "created_by": job.created_by,
        "url": f"{settings.ENGINE_PUBLIC_URL}{job_url(job.id)}",
    }


def _question(question: Question, delivery: Delivery) -> dict[str, Any]:
    """The question as it stood. One that was open then shows no answer, whatever came after."""
    told: dict[str, Any] = dict(QuestionSerializer(question).data)
    del told["remind_at"]  # the next reminder is another one by the time this is sent
    if delivery.event in REMINDERS:
        told |= {"status": "open", "answer": None, "answered_at": None, "answered_by": "", "answered_via": ""}
        told["answer_url"] = answer_url(delivery, holder=f"webhook:{delivery.host}")
    return {name: str(value) if isinstance(value, UUID) else value for name, value in told.items()}


def answer_url(delivery: Delivery, *, holder: str) -> str:
    """A link that answers the question of this message, the same in each try."""
    assert delivery.question_id is not None  # noqa: S101 (asked of messages about questions alone)
    expires_at = delivery.created_at + links.lifetime()
    return links.url(links.AnswerLink(delivery.question_id, holder, expires_at))
