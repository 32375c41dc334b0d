"""Retry and fork: new jobs that go on from an old one's journal."""

from typing import Any

import pytest

from jobs import continuing, loading, services
from jobs.errors import CheckpointNotFound, InvalidAnswer, JobNotFound, JobNotRetryable
from jobs.models import Attempt, Job, Step
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
    step_row,
    write,
)

pytestmark = pytest.mark.django_db(transaction=True)


def ended(status: Job.Status = Job.Status.FAILED) -> Job:
    """A job that asked, was answered, went on and ended."""
    job = make_job(tags=["nightly"])
    worker_id = make_worker()
    first = claim_one(worker_id)
    write(worker_id, steps=[step_row(first, "load#1", ended=True, result={"value": 7}, ordinal=1)])
    write(worker_id, steps=[step_row(first, "ask#1", ended=False, ordinal=2, kind="ask")])
    ask(worker_id, first, question("ask#1"))
    services.respond(job.id, by=make_caller(), answer="because")
    second = claim_one(worker_id)
    write(
        worker_id,
        steps=[
            step_row(second, "ask#1", ended=True, result={"value": "because"}, ordinal=2, kind="ask"),
            step_row(second, "send#1", ended=False, ordinal=3),
        ],
    )
    outcome = Attempt.Outcome.FAILED if status == Job.Status.FAILED else Attempt.Outcome.COMPLETED
    error: Any = {"code": "agent_error", "message": "boom"} if status == Job.Status.FAILED else None
    write(worker_id, settlements=[settlement(second, status, outcome, error=error, result="1")])
    return Job.objects.get(id=job.id)


def test_a_retry_continues_from_the_last_durable_step_and_leaves_the_old_job_as_it_was() -> None:
    old = ended()

    new = continuing.retry(old.id, by=make_caller())

    assert Job.objects.get(id=old.id).status == "failed"
    assert (new.status, new.retried_from_id, new.tags, new.agent_version_id) == (
        "queued",
        old.id,
        ["nightly"],
        old.agent_version_id,
    )
    claimed = claim_one(make_worker())
    details = loading.details(claimed, loading._agent(claimed.agent_version_id))
    assert [(step.key, step.ended) for step in details.journal.steps] == [("load#1", True), ("ask#1", True)]
    assert details.journal.answers == {"ask#1": "because"}
    assert details.seed == str(old.id)
    assert seqs(new.id) == [1, 2]


def test_only_a_failed_or_cancelled_job_is_retried() -> None:
    done = ended(Job.Status.COMPLETED)
    queued = make_job()

    for job in (done, queued):
        with pytest.raises(JobNotRetryable):
            continuing.retry(job.id, by=make_caller())
    with pytest.raises(JobNotFound):
        continuing.retry(done.id, by=make_caller(make_project("stranger")))


def test_a_fork_takes_other_answers_and_forgets_what_came_after() -> None:
    old = ended(Job.Status.COMPLETED)

    new = continuing.fork(old.id, checkpoint="ask#1", given={"ask#1": "for another reason"}, by=make_caller())

    claimed = claim_one(make_worker())
    journal = loading.details(claimed, loading._agent(claimed.agent_version_id)).journal
    assert claimed.id == new.id
    assert [step.key for step in journal.steps] == ["load#1"]
    assert journal.answers == {"ask#1": "for another reason"}
    assert old.questions.get().answer == "because"


def test_a_fork_needs_a_checkpoint_and_answers_that_fit() -> None:
    old = ended(Job.Status.COMPLETED)

    with pytest.raises(CheckpointNotFound):
        continuing.fork(old.id, checkpoint="send#1", given={}, by=make_caller())
    with pytest.raises(CheckpointNotFound):
        continuing.fork(old.id, checkpoint="load#1", given={"ask#1": "x"}, by=make_caller())
    with pytest.raises(InvalidAnswer):
        continuing.fork(old.id, checkpoint="ask#1", given={"ask#1": 7}, by=make_caller())


def test_checkpoints_are_the_finished_entries() -> None:
    old = ended()

    assert [(item.key, item.result) for item in continuing.checkpoints(old.id, by=make_caller())] == [
        ("load#1", 7),
        ("ask#1", "because"),
    ]
    assert Step.objects.filter(job_id=old.id).count() == 3
