"""Thousands of random steps on a real PostgreSQL, each compared with a reference that knows only the rules.

The reference is the table of states and budgets, in a few lines of Python without SQL. After each step the stored jobs
and their events must be exactly what it says, and at the end of each run the history must be sound.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import hypothesis
import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs import batch, claiming, queries, services
from jobs.batch import Batch, EventRow
from jobs.claiming import Claimed
from jobs.errors import InvalidAnswer, JobAlreadyEnded, JobNotWaiting, QuestionAlreadyAnswered, QuestionClosed
from jobs.models import Attempt, Job, Question, Queue, Step
from jobs.queries import WorkerLeaseLost
from tests.history import faults
from tests.jobs import (
    end_lease,
    forget_everything,
    log_line,
    make_caller,
    make_job,
    make_worker,
    question,
    settlement,
    step_row,
    sweep,
)

RUNS, STEPS = 50, 60
LEAST_STEPS = 2_000
MOST_LOSSES, SUSPECT_LOSSES = 3, 2
FINAL = {"completed", "failed", "cancelled"}
PAST, FUTURE = timedelta(seconds=-1), timedelta(hours=1)


@dataclass
class Reference:
    """What must be true of one job."""

    id: UUID
    sort_at: Any
    status: str
    attempt: int = 0
    worker: UUID | None = None
    failures: int = 0
    losses: int = 0
    cancelled: bool = False
    overdue: bool = False
    told: list[str] = field(default_factory=list)
    steps: dict[str, int | None] = field(default_factory=dict)  # key -> result, None while it has only begun
    questions: dict[str, str] = field(default_factory=dict)  # key -> open | answered | expired | superseded

    def goes(self, status: str, event: str = "") -> None:
        """Change state and tell it."""
        self.status, self.worker = status, None
        self.told.append(event or f"job.{status}")
        if status in FINAL:
            self.close_questions()

    def close_questions(self) -> None:
        self.questions = {
            key: "superseded" if status == "open" else status for key, status in self.questions.items()
        }

    def waits_for_nothing(self) -> bool:
        return "open" not in self.questions.values()


@dataclass
class Lease:
    """What one attempt believes: it holds this job, and its next event has this number."""

    worker: UUID
    job: Claimed
    written: int = 0  # events after the claim
    last: Batch | None = None
    last_was_written: bool = False


class QueueMachine(RuleBasedStateMachine):
    """The queue as callers, workers, dead workers and time use it."""

    steps_taken = 0

    def __init__(self) -> None:
        super().__init__()
        forget_everything()
        self.jobs: dict[UUID, Reference] = {}
        self.workers: dict[UUID, bool] = {}  # id -> holds its lease
        self.gone: set[UUID] = set()  # said goodbye
        self.leases: list[Lease] = []  # those of replaced attempts, too
        self.paused = False
        self.caller = make_caller()

    # --- picking ---

    def job(self, number: int, *statuses: str) -> Reference:
        chosen = [job for job in self.jobs.values() if not statuses or job.status in statuses]
        return chosen[number % len(chosen)]

    def worker(self, number: int) -> UUID:
        return list(self.workers)[number % len(self.workers)]

    def lease(self, number: int) -> Lease:
        """Mostly the younger ones: the old ones are refused, all alike."""
        return self.leases[-1 - number % min(len(self.leases), 6)]

    def holds(self, lease: Lease) -> bool:
        job = self.jobs[lease.job.id]
        return (
            self.workers[lease.worker]
            and job.status == "running"
            and (job.attempt, job.worker) == (lease.job.attempt, lease.worker)
        )

    def due(self, *, suspects: bool) -> list[Reference]:
        """What a claim finds, in its order."""
        found = [
            job
            for job in self.jobs.values()
            if job.status == "queued" and (job.losses >= SUSPECT_LOSSES) == suspects and not self.paused
        ]
        return sorted(found, key=lambda job: (job.sort_at, job.id))

    # --- callers ---

    @rule(
        priority=st.sampled_from(["low", "normal", "normal", "high"]),
        later=st.sampled_from([False, False, True]),
    )
    def submit(self, priority: str, later: bool) -> None:
        job = make_job(priority=priority, run_at=timezone.now() + FUTURE if later else None)
        status = "scheduled" if later else "queued"
        self.jobs[job.id] = Reference(job.id, job.sort_at, status, told=[f"job.{status}"])

    @precondition(lambda self: self.jobs)
    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        job = self.job(number)
        if job.status in ("completed", "failed"):
            with pytest.raises(JobAlreadyEnded):
                services.cancel(job.id, by=self.caller)
            return
        services.cancel(job.id, by=self.caller)
        if job.status == "running":
            job.cancelled = True
        elif job.status != "cancelled":
            job.cancelled = True
            job.goes("cancelled")

    @precondition(lambda self: any(job.questions for job in self.jobs.values()))
    @rule(number=st.integers(0, 99), which=st.integers(0, 1), fits=st.sampled_from([True, True, True, False]))
    def answer(self, number: int, which: int, fits: bool) -> None:
        asked = [job for job in self.jobs.values() if job.questions]
        job = asked[number % len(asked)]
        key = list(job.questions)[which % len(job.questions)]
        stored = Question.objects.get(job_id=job.id, key=key)
        respond = partial(
            services.respond, job.id, by=self.caller, answer="because" if fits else 5, question_id=stored.id
        )
        match job.questions[key], fits:
            case "open", True:
                respond()
                job.questions[key] = "answered"
                job.told.append("question.answered")
                if job.waits_for_nothing():
                    job.goes("queued")
            case "open", False:
                with pytest.raises(InvalidAnswer):
                    respond()
            case "answered", _:
                with pytest.raises(QuestionAlreadyAnswered):
                    respond()
            case _:
                with pytest.raises(QuestionClosed):
                    respond()

    @precondition(lambda self: any(job.questions for job in self.jobs.values()))
    @rule(number=st.integers(0, 99))
    def answer_whatever_is_open(self, number: int) -> None:
        asked = [job for job in self.jobs.values() if job.questions]
        job = asked[number % len(asked)]
        open_keys = [key for key, status in job.questions.items() if status == "open"]
        if len(open_keys) == 1:
            services.respond(job.id, by=self.caller, answer="because")
            job.questions[open_keys[0]] = "answered"
            job.told.append("question.answered")
            job.goes("queued")
        elif not open_keys:
            with pytest.raises(JobNotWaiting):
                services.respond(job.id, by=self.caller, answer="because")

    @rule()
    def pause_or_resume_the_queue(self) -> None:
        self.paused = not self.paused
        moment = timezone.now() if self.paused else None
        Queue.objects.update_or_create(name="default", defaults={"paused_at": moment})

    # --- workers ---

    @rule()
    def start_worker(self) -> None:
        self.workers[make_worker()] = True

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, 99), limit=st.integers(1, 4), suspects=st.sampled_from([False, False, True]))
    def claim(self, number: int, limit: int, suspects: bool) -> None:
        worker = self.worker(number)
        take = partial(claiming.claim, worker, queue="default", limit=limit, suspects=suspects)
        if not self.workers[worker]:
            with pytest.raises(WorkerLeaseLost):
                take()
            return
        expected = self.due(suspects=suspects)[:limit]

        claimed = {job.id: job for job in take()}

        assert claimed.keys() == {job.id for job in expected}
        for job in expected:
            job.attempt += 1
            job.goes("running", "job.started")
            job.worker = worker
            assert claimed[job.id].attempt == job.attempt
            self.leases.append(Lease(worker, claimed[job.id]))

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, 99))
    def heartbeat(self, number: int) -> None:
        worker = self.worker(number)
        beat = partial(queries.heartbeat, worker, running=0, can_run=True, health={})
        if not self.workers[worker]:
            with pytest.raises(WorkerLeaseLost):
                beat()
            return
        held = {(job.id, job.attempt): job.cancelled for job in self.jobs.values() if job.worker == worker}
        assert beat().held == held

    def write(self, lease: Lease, rows: Batch, then: Callable[[Reference], str]) -> None:
        """Write a batch of one attempt; `then` says what the reference becomes and which state it settles in."""
        lease.last, lease.last_was_written = rows, False
        key = (lease.job.id, lease.job.attempt)
        if not self.workers[lease.worker]:
            with pytest.raises(WorkerLeaseLost):
                batch.write(lease.worker, rows)
            return
        held = self.holds(lease)
        written = batch.write(lease.worker, rows)
        if held:
            lease.last_was_written = True
            status = then(self.jobs[lease.job.id])
            assert written.refused == set()
            assert written.settled == ({key: status} if status else {})
        elif rows.settlements and (settled := self.settled_before(lease)):
            assert written.settled == {key: settled}
        else:
            assert (written.refused, written.settled) == ({key}, {})

    def settled_before(self, lease: Lease) -> str:
        """The job's status where this very attempt had settled it: a repeated reply must say so."""
        row = Attempt.objects.filter(job_id=lease.job.id, number=lease.job.attempt).first()
        ended = row is not None and row.ended_at is not None and row.outcome != Attempt.Outcome.LOST
        return self.jobs[lease.job.id].status if ended else ""

    @precondition(lambda self: self.leases)
    @rule(number=st.integers(0, 99), lines=st.integers(1, 3))
    def log(self, number: int, lines: int) -> None:
        lease = self.lease(number)
        rows = Batch(events=[log_line(lease.job, lease.written + line) for line in range(1, lines + 1)])

        def then(job: Reference) -> str:
            lease.written += lines
            job.told += ["log"] * lines
            return ""

        self.write(lease, rows, then)

    @precondition(lambda self: self.leases)
    @rule(number=st.integers(0, 99), key=st.sampled_from(["a#1", "b#1"]), result=st.integers(0, 10**6))
    def begin_or_end_step(self, number: int, key: str, result: int) -> None:
        lease = self.lease(number)
        job = self.jobs[lease.job.id]
        if self.holds(lease) and job.steps.get(key) is not None:
            return  # the journal has it: no agent comes here again
        ends = key in job.steps
        told = self.step_event(lease, key, "step.completed" if ends else "step.started")
        rows = Batch(events=[told], steps=[step_row(lease.job, key, ended=ends, result={"value": result})])
        if ends:
            rows.durable_steps.add((lease.job.id, lease.job.attempt))

        def then(job: Reference) -> str:
            lease.written += 1
            job.told.append(told.type)
            job.steps[key] = result if ends else None
            if ends:
                job.losses = 0
            return ""

        self.write(lease, rows, then)

    def step_event(self, lease: Lease, key: str, type: str) -> EventRow:
        line = log_line(lease.job, lease.written + 1)
        return EventRow(
            line.job_id,
            line.attempt,
            line.seq,
            line.at,
            type,
            "system",
            "info",
            key,
            json.dumps({"key": key}),
        )

    @precondition(lambda self: self.leases)
    @rule(
        number=st.integers(0, 99),
        ending=st.sampled_from(
            ["complete", "fail", "retry", "suspend", "suspend", "hand back", "sandbox lost"]
        ),
        asks=st.integers(1, 2),
    )
    def settle(self, number: int, ending: str, asks: int) -> None:
        lease = self.lease(number)
        keys = [f"ask#{lease.job.attempt}{letter}" for letter in "ab"[:asks]]
        status, outcome, changes = self.ending(lease, ending, keys)
        row = settlement(lease.job, status, outcome, offset=lease.written + 1, result="1", **changes)

        def then(job: Reference) -> str:
            if job.cancelled and status != Job.Status.COMPLETED:
                job.goes("cancelled")
                return "cancelled"
            job.failures += ending in ("fail", "retry")
            job.losses = changes.get("losses", 0)
            if ending == "suspend":
                job.questions |= dict.fromkeys(keys, "open")
                job.told += ["question.opened"] * asks
            event = {"scheduled": "job.retrying", "waiting_for_input": "job.waiting"}
            job.goes(status.value, event.get(status.value, ""))
            return status.value

        self.write(lease, Batch(settlements=[row]), then)

    def ending(
        self, lease: Lease, ending: str, keys: list[str]
    ) -> tuple[Job.Status, Attempt.Outcome, dict[str, Any]]:
        error = {"code": "x", "message": "y"}
        losses = self.jobs[lease.job.id].losses
        match ending:
            case "complete":
                return Job.Status.COMPLETED, Attempt.Outcome.COMPLETED, {}
            case "fail":
                return Job.Status.FAILED, Attempt.Outcome.FAILED, {"error": error, "counts_as_failure": True}
            case "retry" if self.jobs[lease.job.id].failures < lease.job.max_attempts - 1:
                changes = {"error": error, "counts_as_failure": True, "retry_after": FUTURE}
                return Job.Status.SCHEDULED, Attempt.Outcome.FAILED, changes
            case "suspend":
                changes = {"reason": "question", "questions": tuple(map(question, keys))}
                return Job.Status.WAITING_FOR_INPUT, Attempt.Outcome.SUSPENDED, changes
            case "sandbox lost" if losses + 1 < MOST_LOSSES:
                return Job.Status.QUEUED, Attempt.Outcome.LOST, {"error": error, "losses": losses + 1}
            case _:
                return Job.Status.QUEUED, Attempt.Outcome.HANDED_BACK, {"losses": losses}

    @precondition(lambda self: any(lease.last for lease in self.leases))
    @rule(number=st.integers(0, 99))
    def repeat_a_batch(self, number: int) -> None:
        """Its reply was lost, so it is sent again: nothing changes."""
        sent = [lease for lease in self.leases if lease.last]
        lease = sent[-1 - number % min(len(sent), 6)]
        assert lease.last is not None
        if not self.workers[lease.worker]:
            with pytest.raises(WorkerLeaseLost):
                batch.write(lease.worker, lease.last)
        elif lease.last_was_written or not self.holds(lease):
            batch.write(lease.worker, lease.last)

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, 99))
    def say_goodbye(self, number: int) -> None:
        worker = self.worker(number)
        queries.stop_worker(worker)
        self.workers[worker] = False
        self.gone.add(worker)

    # --- time and death ---

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, 99))
    def lease_runs_out(self, number: int) -> None:
        worker = self.worker(number)
        end_lease(worker)
        self.workers[worker] = False

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, 99))
    def clock_goes_back(self, number: int) -> None:
        """A lease that had run out holds again, as if the database's clock had been set back: fences must do."""
        worker = self.worker(number)
        if worker in self.gone:
            return
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE jobs_worker SET lease_until = statement_timestamp() + interval '1 hour' WHERE id = %s",
                [worker],
            )
        self.workers[worker] = True

    @rule()
    def sweep(self) -> None:
        while sweep() != queries.Swept():
            pass
        for job in self.jobs.values():
            if job.worker is None or self.workers[job.worker]:
                continue
            job.losses += 1
            if job.cancelled:
                job.goes("cancelled")
            elif job.losses >= MOST_LOSSES:
                job.goes("failed")
            else:
                job.goes("queued")

    @precondition(lambda self: any(job.status == "scheduled" for job in self.jobs.values()))
    @rule(number=st.integers(0, 99))
    def its_time_comes(self, number: int) -> None:
        job = self.job(number, "scheduled")
        Job.objects.filter(id=job.id).update(run_at=timezone.now() + PAST)
        assert queries.promote() == {"default"}
        job.goes("queued")

    @precondition(lambda self: any(job.status not in FINAL for job in self.jobs.values()))
    @rule(number=st.integers(0, 99))
    def deadline_passes(self, number: int) -> None:
        job = self.job(number, "scheduled", "queued", "running", "waiting_for_input")
        Job.objects.filter(id=job.id).update(deadline_at=timezone.now() + PAST)
        job.overdue = True
        late = {one.id for one in self.jobs.values() if one.overdue and one.status not in (*FINAL, "running")}
        assert set(queries.fail_overdue()) == late
        for job_id in late:
            self.jobs[job_id].goes("failed")

    @precondition(lambda self: any(job.status == "waiting_for_input" for job in self.jobs.values()))
    @rule(number=st.integers(0, 99), on_timeout=st.sampled_from(["wait", "default", "fail"]))
    def question_expires(self, number: int, on_timeout: str) -> None:
        job = self.job(number, "waiting_for_input")
        key = next(key for key, status in job.questions.items() if status == "open")
        changes = {
            "expires_at": timezone.now() + PAST,
            "on_timeout": on_timeout,
            "default": "none",
            "has_default": True,
        }
        Question.objects.filter(job_id=job.id, key=key).update(**changes)
        for job_id, question_id in queries.due_questions():
            services.expire_question(job_id, question_id)
            services.expire_question(job_id, question_id)  # another worker had seen it, too
        if on_timeout == "wait":
            return
        job.questions[key] = "expired"
        job.told.append("question.expired")
        if on_timeout == "fail":
            job.goes("failed")
        elif job.waits_for_nothing():
            job.goes("queued")

    # --- what must hold ---

    @invariant()
    def stored_jobs_are_what_the_rules_say(self) -> None:
        type(self).steps_taken += 1
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT id, status, attempt, worker_id, failed_count, lost_count, cancel_requested_at IS NOT NULL,
                       ARRAY(SELECT type FROM jobs_event WHERE job_id = job.id ORDER BY seq)
                  FROM jobs_job AS job
                """
            )
            stored = {row[0]: row[1:] for row in cursor.fetchall()}
        assert stored == {
            job.id: (job.status, job.attempt, job.worker, job.failures, job.losses, job.cancelled, job.told)
            for job in self.jobs.values()
        }

    def teardown(self) -> None:
        with connection.cursor() as cursor:
            assert faults(cursor) == []
        results = {(step.job_id, step.key): step.result for step in Step.objects.all()}
        assert results == {
            (job.id, key): None if result is None else {"value": result}
            for job in self.jobs.values()
            for key, result in job.steps.items()
        }
        states = {(asked.job_id, asked.key): asked.status for asked in Question.objects.all()}
        assert states == {
            (job.id, key): status for job in self.jobs.values() for key, status in job.questions.items()
        }


@pytest.mark.django_db(transaction=True)
def test_whatever_happens_in_whatever_order_jobs_stay_as_the_rules_say(pytestconfig: pytest.Config) -> None:
    seed = int(pytestconfig.getoption("--hypothesis-seed") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}: repeat with --hypothesis-seed={seed}")
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")  # nothing crashes here
    QueueMachine.steps_taken = 0

    run_state_machine_as_test(
        hypothesis.seed(seed)(QueueMachine),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    print(f"{QueueMachine.steps_taken} steps")
    assert QueueMachine.steps_taken >= LEAST_STEPS
