"""Answering questions and cancelling, each as callers do it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, connections
from django.utils import timezone
from uuid_utils.compat import uuid7

from jobs import queries, services
from jobs.errors import (
    InvalidAnswer,
    JobAlreadyEnded,
    JobNotFound,
    JobNotWaiting,
    QuestionAlreadyAnswered,
    QuestionClosed,
    QuestionNotFound,
    SeveralQuestionsOpen,
)
from jobs.models import Event, Job, Question
from tests.jobs import (
    ask,
    claim_one,
    make_caller,
    make_job,
    make_project,
    make_worker,
    question,
    seqs,
    settlement,
    types,
    write,
)

pytestmark = pytest.mark.django_db(transaction=True)


def waiting(*questions: Any) -> Job:
    """A job that waits for answers."""
    job = make_job()
    worker_id = make_worker()
    ask(worker_id, claim_one(worker_id), *questions)
    return Job.objects.get(id=job.id)


def test_the_answer_resumes_the_job_at_its_old_place() -> None:
    job = waiting(question())
    make_job()

    services.respond(job.id, by=make_caller(), answer="because")

    stored = Job.objects.get(id=job.id)
    answered = Question.objects.get()
    assert (stored.status, stored.sort_at) == ("queued", job.sort_at)
    assert (answered.answer, answered.answered_by, answered.answered_via) == (
        "because",
        "user:tester",
        "api_key",
    )
    assert types(job.id)[-2:] == ["question.answered", "job.queued"]
    assert claim_one(make_worker()).id == job.id
    assert seqs(job.id) == list(range(1, len(seqs(job.id)) + 1))


def test_the_last_of_several_answers_resumes_the_job() -> None:
    job = waiting(question("ask#1"), question("ask#2"))
    first, second = job.questions.order_by("id")

    services.respond(job.id, by=make_caller(), question_id=second.id, answer="two")
    assert Job.objects.get(id=job.id).status == "waiting_for_input"
    services.respond(job.id, by=make_caller(), answer="one")

    assert Job.objects.get(id=job.id).status == "queued"
    assert [item.answer for item in job.questions.order_by("id")] == ["one", "two"]
    assert first.key == "ask#1"


def test_several_answers_at_once_are_all_stored_or_none() -> None:
    job = waiting(question("ask#1"), question("ask#2"))
    first, second = job.questions.order_by("id")

    with pytest.raises(InvalidAnswer) as invalid:
        services.respond(job.id, by=make_caller(), by_question={first.id: "fine", second.id: 7})
    assert not Question.objects.filter(status="answered").exists()
    assert invalid.value.errors[0]["pointer"] == f"/answers/{second.id}"

    services.respond(job.id, by=make_caller(), by_question={first.id: "one", second.id: "two"})
    assert Job.objects.get(id=job.id).status == "queued"


def test_what_cannot_be_an_answer_is_refused_with_a_reason() -> None:
    job = waiting(question("ask#1"), question("ask#2"))
    by = make_caller()

    with pytest.raises(SeveralQuestionsOpen) as several:
        services.respond(job.id, by=by, answer="x")
    assert len(several.value.fields["questions"]) == 2
    with pytest.raises(QuestionNotFound):
        services.respond(job.id, by=by, question_id=uuid4(), answer="x")
    with pytest.raises(InvalidAnswer) as invalid:
        services.respond(job.id, by=by, question_id=job.questions.order_by("id")[0].id, answer={"no": 1})
    assert invalid.value.errors[0]["pointer"] == "/answer"


def test_a_late_answer_is_told_who_was_first() -> None:
    job = waiting(question())
    asked = Question.objects.get()
    services.respond(job.id, by=make_caller(), answer="first")

    with pytest.raises(QuestionAlreadyAnswered) as late:
        services.respond(job.id, by=make_caller(), question_id=asked.id, answer="second")
    with pytest.raises(JobNotWaiting) as none_open:
        services.respond(job.id, by=make_caller(), answer="third")

    assert late.value.fields["answered_by"] == none_open.value.fields["answered_by"] == "user:tester"
    assert Question.objects.get().answer == "first"


def test_of_answers_given_together_one_wins_and_the_job_resumes_once() -> None:
    job = waiting(question())
    asked = Question.objects.get()
    together = threading.Barrier(6)

    def answer(number: int) -> str:
        together.wait(10)
        try:
            services.respond(job.id, by=make_caller(), question_id=asked.id, answer=f"answer {number}")
        except QuestionAlreadyAnswered:
            return "late"
        finally:
            connections.close_all()
        return "won"

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(answer, range(6)))

    assert sorted(results) == ["late"] * 5 + ["won"]
    assert types(job.id).count("question.answered") == types(job.id).count("job.queued") - 1 == 1


def copies(job: Job, count: int) -> list[Job]:
    """The same waiting job with its question so many times."""
    asked = Question.objects.get(job=job)
    jobs = [Job.objects.get(id=job.id)] + [copy(job) for _ in range(count - 1)]
    questions = [copy(asked) for _ in jobs[1:]]
    for one, its in zip(jobs[1:], questions, strict=True):
        one.pk, its.pk, its.job = uuid7(), uuid7(), one
    Job.objects.bulk_create(jobs[1:])
    Question.objects.bulk_create(questions)
    return jobs


def test_five_hundred_jobs_answered_twice_at_once_resume_once_each() -> None:
    jobs = copies(waiting(question()), 500)
    questions = dict(Question.objects.values_list("job_id", "id"))
    together = threading.Barrier(2)

    def answer_all(who: str) -> int:
        won = 0
        by = make_caller()
        try:
            for job in jobs:
                together.wait()
                try:
                    services.respond(job.id, by=by, question_id=questions[job.id], answer=who)
                    won += 1
                except QuestionAlreadyAnswered:
                    pass
        finally:
            connections.close_all()
        return won

    with ThreadPoolExecutor(2) as pool:
        won = sum(pool.map(answer_all, ["ann", "ben"]))

    assert won == 500
    assert Job.objects.filter(status="queued").count() == 500
    resumed = Event.objects.filter(type="job.queued", data__reason="answered").values_list(
        "job_id", flat=True
    )
    assert sorted(resumed) == sorted(job.id for job in jobs)
    assert Event.objects.filter(type="question.answered").count() == 500


def test_people_may_type_short_forms() -> None:
    allowed = {"allowed": ["approve", "reject"]}
    schema = {"properties": {"decision": {"enum": ["approve", "reject"]}}, "required": ["decision"]}
    job = waiting(
        question("a#1", kind="confirm", schema={"type": "boolean"}),
        question("b#1", kind="approval", schema=schema, details=allowed),
    )
    first, second = job.questions.order_by("id")

    services.respond(job.id, by=make_caller(), by_question={first.id: "yes", second.id: "approve"})

    assert [item.answer for item in job.questions.order_by("id")] == [True, {"decision": "approve"}]


def test_another_project_sees_neither_job_nor_question() -> None:
    job = waiting(question())
    stranger = make_caller(make_project("stranger"))

    for act in (
        services.get,
        services.cancel,
        lambda job_id, by: services.respond(job_id, by=by, answer="x"),
    ):
        with pytest.raises(JobNotFound) as hidden:
            act(job.id, by=stranger)
        with pytest.raises(JobNotFound) as missing:
            act(UUID(int=job.id.int + 1), by=stranger)
        assert hidden.value.detail == missing.value.detail
    assert not Question.objects.visible_to(stranger).exists()


# --- time ---


def expire(**fields: Any) -> Job:
    """A waiting job whose question's time is up, and what expiry made of it."""
    job = waiting(question(expires_in=timedelta(hours=1), **fields))
    Question.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    for job_id, question_id in queries.due_questions():
        services.expire_question(job_id, question_id)
    return Job.objects.get(id=job.id)


def test_a_question_that_may_wait_stays_open_past_its_time() -> None:
    assert expire(on_timeout="wait").status == "waiting_for_input"
    assert Question.objects.get().status == "open"


def test_a_default_is_taken_when_time_is_up_and_is_nobodys_answer() -> None:
    job = expire(on_timeout="default", has_default=True, default="formal")

    expired = Question.objects.get()
    assert job.status == "queued"
    assert (expired.status, expired.answer, expired.answered_by) == ("expired", "formal", "")
    with pytest.raises(QuestionClosed):
        services.respond(job.id, by=make_caller(), question_id=expired.id, answer="late")


def test_a_question_may_fail_its_job_when_time_is_up() -> None:
    job = expire(on_timeout="fail")

    assert (job.status, job.status_reason, (job.error or {})["code"]) == (
        "failed",
        "question_expired",
        "question_expired",
    )


def test_an_answer_before_the_expiry_wins() -> None:
    job = waiting(question(on_timeout="fail", expires_in=timedelta(hours=1)))
    asked = Question.objects.get()
    services.respond(job.id, by=make_caller(), answer="in time")

    services.expire_question(job.id, asked.id)

    assert Job.objects.get(id=job.id).status == "queued"


# --- cancel ---


def test_cancelling_closes_open_questions() -> None:
    job = waiting(question())

    services.cancel(job.id, by=make_caller())

    assert Job.objects.get(id=job.id).status == "cancelled"
    assert Question.objects.get().status == "superseded"
    with pytest.raises(JobNotWaiting):
        services.respond(job.id, by=make_caller(), answer="late")


def test_cancel_is_idempotent_and_refused_once_ended_otherwise() -> None:
    job = make_job()
    services.cancel(job.id, by=make_caller())
    assert services.cancel(job.id, by=make_caller()).status == "cancelled"

    make_job()
    worker_id = make_worker()
    done = claim_one(worker_id)
    write(worker_id, settlements=[settlement(done, result="1")])
    with pytest.raises(JobAlreadyEnded):
        services.cancel(done.id, by=make_caller())


def test_cancelling_a_running_job_tells_its_lease_holder_and_writes_nothing_else() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    services.cancel(job.id, by=make_caller())

    beat = queries.heartbeat(worker_id, running=1, can_run=True, health={})
    assert beat.held == {(job.id, 1): True}
    assert types(job.id) == ["job.queued", "job.started"]


def test_a_closed_question_never_changes() -> None:
    waiting(question())
    Question.objects.update(status="superseded")

    with pytest.raises(IntegrityError, match="never changes"):
        Question.objects.update(answer="x")
