"""Two sessions on one job, stepped statement by statement through every order in which one interrupts the other."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.utils import timezone

from jobs import claiming, queries, services
from jobs.batch import Written
from jobs.claiming import Claimed
from jobs.errors import JobAlreadyEnded, JobNotWaiting, QuestionAlreadyAnswered
from jobs.models import Attempt, Event, Job, Question, Step
from jobs.queries import WorkerLeaseLost
from tests.history import faults
from tests.jobs import (
    ask,
    claim_one,
    end_lease,
    log_line,
    make_caller,
    make_job,
    make_worker,
    question,
    settlement,
    step_row,
    sweep,
    write,
)
from tests.stepping import Call, Run, interleaved

pytestmark = pytest.mark.django_db(transaction=True)

RETRY = {"reason": "retry_backoff", "counts_as_failure": True, "retry_after": timedelta(minutes=1)}


class Situation:
    """A job and the worker that holds or held it; each test makes it anew for every order."""

    job: Claimed
    worker_id: UUID

    def queued(self) -> UUID:
        Job.objects.filter(finished_at=None).update(queue="done with")
        return make_job().id

    def running(self) -> None:
        self.queued()
        self.worker_id = make_worker()
        self.job = claim_one(self.worker_id)

    def waiting(self, **fields: Any) -> None:
        self.running()
        ask(self.worker_id, self.job, question(**fields))

    @property
    def stored(self) -> Job:
        return Job.objects.get(id=self.job.id)

    @property
    def question(self) -> Question:
        return Question.objects.get(job_id=self.job.id)

    @property
    def told(self) -> list[str]:
        """What happened after its first claim."""
        events = Event.objects.filter(job_id=self.job.id, seq__gt=2)
        return list(events.order_by("seq").values_list("type", flat=True))

    def dies(self) -> queries.Swept:
        """Its worker's lease runs out, and another worker sweeps."""
        end_lease(self.worker_id)
        return sweep()

    def cancel(self) -> str:
        return services.cancel(self.job.id, by=make_caller()).status

    def answer(self, text: str = "because") -> Job:
        return services.respond(self.job.id, by=make_caller(), answer=text)

    def expire(self) -> None:
        services.expire_question(self.job.id, self.question.id)

    def end(self, status: Job.Status, outcome: Attempt.Outcome, **fields: Any) -> Written:
        return write(self.worker_id, settlements=[settlement(self.job, status, outcome, **fields)])

    def complete(self) -> Written:
        return self.end(Job.Status.COMPLETED, Attempt.Outcome.COMPLETED, result="1")

    def retry(self) -> Written:
        error = {"code": "x", "message": "y"}
        return self.end(Job.Status.SCHEDULED, Attempt.Outcome.FAILED, error=error, **RETRY)

    def suspend(self) -> Written:
        return ask(self.worker_id, self.job, question())


@pytest.fixture
def one() -> Iterator[Situation]:
    """And what all orders left behind must be a history that could have happened."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        yield Situation()
        assert faults(cursor) == []
        cursor.execute("RESET synchronous_commit")


def failure(*runs: Run) -> type[Exception] | None:
    """The class of the one error that came, if any."""
    errors = [type(run.error) for run in runs if run.error is not None]
    assert len(errors) <= 1, [run.error for run in runs]
    return errors[0] if errors else None


def test_a_write_and_a_sweep_of_its_worker_never_mix(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        job, worker_id = one.job, one.worker_id
        told = replace(log_line(job, 2), type="step.completed", data='{"key": "load#1"}')
        step = step_row(job, "load#1", ended=True, result={"value": 1})
        return lambda: write(worker_id, events=[log_line(job, 1), told], steps=[step]), one.dies

    ways = set()
    for writing, sweeping in interleaved(prepare):
        assert failure(writing, sweeping) in (None, WorkerLeaseLost)
        written = writing.error is None and not writing.result.refused
        sweep()  # the one above passes by while the write holds the worker's row
        assert one.told == [*(["log", "step.completed"] if written else []), "job.queued"]
        assert Step.objects.filter(job_id=one.job.id).exists() == written
        assert one.stored.status == "queued"
        ways.add(written)
    assert ways == {True, False}


def test_a_result_and_a_sweep_of_its_worker_never_mix(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        return one.complete, one.dies

    ways = set()
    for ending, sweeping in interleaved(prepare):
        assert failure(ending, sweeping) in (None, WorkerLeaseLost)
        sweep()
        completed = ending.error is None and not ending.result.refused
        assert one.stored.status == ("completed" if completed else "queued")
        ways.add(completed)
    assert ways == {True, False}


def test_a_heartbeat_never_brings_back_a_worker_that_was_swept(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        worker_id = one.worker_id
        return lambda: queries.heartbeat(worker_id, running=1, can_run=True, health={}), one.dies

    for beating, sweeping in interleaved(prepare):
        assert failure(beating, sweeping) in (None, WorkerLeaseLost)
        if sweeping.result.requeued:
            assert one.stored.status == "queued"
            with pytest.raises(WorkerLeaseLost):
                one.complete()
        else:
            one.complete()


def test_a_claim_and_a_cancel_leave_no_job_that_runs_unheard(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        job_id = one.queued()
        one.worker_id = make_worker()
        take = partial(claiming.claim, one.worker_id, queue="default", limit=1)
        return take, lambda: services.cancel(job_id, by=make_caller())

    ways = set()
    for claim, cancel in interleaved(prepare):
        assert failure(claim, cancel) is None
        job = Job.objects.get(id=cancel.result.id)
        ways.add(job.status)
        if claim.result:
            assert (job.status, job.cancel_requested_at is not None) == ("running", True)
            assert queries.heartbeat(one.worker_id, running=1, can_run=True, health={}).held == {
                (job.id, 1): True
            }
            one.job = claim.result[0]
            one.retry()
        assert Job.objects.get(id=job.id).status == "cancelled"
    assert ways == {"running", "cancelled"}


def test_two_claims_never_take_one_job(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.queued()
        make_job()
        make_job()
        first, second = make_worker(), make_worker()
        take = partial(claiming.claim, queue="default", limit=2)
        return lambda: take(first), lambda: take(second)

    for first, second in interleaved(prepare):
        assert failure(first, second) is None
        taken = [job.id for job in first.result + second.result]
        assert len(taken) == len(set(taken)) >= 2


@pytest.mark.parametrize(
    ("on_timeout", "loses_as", "taken"), [("fail", "failed", None), ("default", "queued", "none")]
)
def test_an_answer_and_the_end_of_its_time_have_one_winner(
    one: Situation, on_timeout: str, loses_as: str, taken: str | None
) -> None:
    def prepare() -> tuple[Call, Call]:
        one.waiting(on_timeout=on_timeout, has_default=True, default="none")
        Question.objects.filter(status="open").update(expires_at=timezone.now() - timedelta(seconds=1))
        return one.answer, one.expire

    ways = set()
    for answering, expiring in interleaved(prepare):
        assert failure(answering, expiring) in (None, JobNotWaiting)
        answered = answering.error is None
        ways.add(answered)
        assert one.question.status == ("answered" if answered else "expired")
        assert one.stored.status == ("queued" if answered else loses_as)
        assert one.question.answer == ("because" if answered else taken)
    assert ways == {True, False}


def test_of_two_answers_the_first_wins_and_the_second_hears_so(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.waiting()
        return lambda: one.answer("first"), lambda: one.answer("second")

    winners = set()
    for first, second in interleaved(prepare):
        assert failure(first, second) in (JobNotWaiting, QuestionAlreadyAnswered)
        winner = "first" if first.error is None else "second"
        winners.add(winner)
        assert one.question.answer == winner
        assert one.told.count("question.answered") == one.told.count("job.queued") == 1
    assert winners == {"first", "second"}


def test_an_answer_and_a_cancel_leave_a_cancelled_job(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.waiting()
        return one.answer, one.cancel

    for answering, cancelling in interleaved(prepare):
        assert failure(answering, cancelling) in (None, JobNotWaiting)
        assert one.stored.status == "cancelled"
        assert one.question.status == ("superseded" if answering.error else "answered")


def test_a_completion_and_a_cancel_have_one_winner_and_the_caller_hears_which(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        return one.complete, one.cancel

    for completing, cancelling in interleaved(prepare):
        assert failure(completing, cancelling) in (None, JobAlreadyEnded)
        # Only a promise to try was made while it ran, and `completed` may still win.
        assert cancelling.error is not None or cancelling.result == "running"
        assert one.stored.status == "completed"


@pytest.mark.parametrize("end", ["retry", "suspend"])
def test_no_job_goes_on_after_a_cancel_was_accepted(one: Situation, end: str) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        return getattr(one, end), one.cancel

    ways = set()
    for ending, cancelling in interleaved(prepare):
        assert failure(ending, cancelling) is None
        assert one.stored.status == "cancelled"
        ways.add(cancelling.result)
    assert ways == {"running", "cancelled"}


def test_a_cancel_and_a_sweep_leave_no_job_that_runs_again(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        one.running()
        return one.cancel, one.dies

    for cancelling, sweeping in interleaved(prepare):
        assert failure(cancelling, sweeping) is None
        sweep()
        assert one.stored.status == "cancelled"


def test_a_deadline_and_a_claim_have_one_winner(one: Situation) -> None:
    def prepare() -> tuple[Call, Call]:
        job_id = one.queued()
        Job.objects.filter(id=job_id).update(deadline_at=timezone.now() - timedelta(seconds=1))
        one.worker_id = make_worker()
        return lambda: claiming.claim(one.worker_id, queue="default", limit=1), queries.fail_overdue

    ways = set()
    for claim, overdue in interleaved(prepare):
        assert failure(claim, overdue) is None
        assert len(claim.result) + len(overdue.result) == 1
        ways.add(len(claim.result))
        for job in claim.result:
            one.job = job
            one.complete()
    assert ways == {0, 1}
