"""The judge is judged: a sound history has no faults, and each fault that is planted is found by its rule."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from jobs import services
from jobs.models import Attempt, Job
from tests.history import ALWAYS, AT_REST, faults
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

pytestmark = pytest.mark.django_db(transaction=True)

DONE = "(SELECT id FROM jobs_job WHERE status = 'completed')"
RUNNING = "(SELECT id FROM jobs_job WHERE status = 'running')"
NOBODY = "gen_random_uuid()"


def event(seq: str, type: str, *, job: str = DONE, attempt: int = 2, data: str = "NULL") -> str:
    return f"""
    INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
    VALUES ({job}, {seq}, {attempt}, now(), '{type}', 'system', 'info', '', {data})
    """


NEXT = f"(SELECT max(seq) + 1 FROM jobs_event WHERE job_id = {DONE})"
FAULTS = {
    "events are numbered from 1 without gaps": f"DELETE FROM jobs_event WHERE seq = 3 AND job_id = {DONE}",
    "last_seq of a job that is not running is its last event's": "UPDATE jobs_job SET last_seq = last_seq + 1",
    "no event belongs to no job": event("1", "log", job=NOBODY),
    "a replaced attempt never writes again": event(NEXT, "log", attempt=1),
    "no event is of an attempt that never was": event(NEXT, "log", attempt=9),
    "a final job has exactly one final event, its own, and nothing after it": event(NEXT, "log"),
    "states follow each other as the table of states says": event(NEXT, "job.waiting"),
    "the last event of a change of state tells the job's state": event(NEXT, "job.queued"),
    "each attempt has started once, in order": event(NEXT, "job.started"),
    "each attempt that is over has one closed row, of the worker that started it": (
        f"UPDATE jobs_attempt SET worker_id = {NOBODY} WHERE number = 1"
    ),
    "no attempt has a row without a start": "UPDATE jobs_attempt SET number = 7 WHERE outcome = 'completed'",
    "a job completes with its last attempt, and no other attempt completes": (
        "UPDATE jobs_attempt SET outcome = 'completed' WHERE outcome = 'suspended'"
    ),
    "only a completed job has a result, only one that ended badly an error": (
        "UPDATE jobs_job SET error = '{}' WHERE status = 'completed'"
    ),
    "once cancelled, only completed can still win": (
        "UPDATE jobs_job SET cancel_requested_at = now() WHERE status = 'queued'"
    ),
    "a running job is held by a worker that said so, no other job by any": (
        f"UPDATE jobs_job SET worker_id = {NOBODY} WHERE status = 'running'"
    ),
    "failures are counted against the budget, nothing else is": "UPDATE jobs_job SET failed_count = 1",
    "a job fails as lost only after three losses in a row": (
        "UPDATE jobs_job SET status = 'failed', status_reason = 'worker_lost', result = NULL, error = '{}'"
        " WHERE status = 'completed'"
    ),
    "a step with a durable end is told once, and never begins again": (
        event(NEXT, "step.started", data="""'{"key": "load#1"}'""")
    ),
    "steps and what is told of them agree": "DELETE FROM jobs_step",
    "a step that has ended has its result": "UPDATE jobs_step SET result = NULL",
    "a question is opened once and closed once": "UPDATE jobs_question SET status = 'superseded'",
    "the answer that is kept is the one that was told": """UPDATE jobs_question SET answer = '"other"'""",
    "exactly the jobs that wait have open questions": "UPDATE jobs_question SET status = 'open'",
    "statistics count each attempt that a worker ended": "UPDATE jobs_minutestat SET count = count + 1",
    "histograms hold as many attempts as were counted": "UPDATE jobs_minutestat SET run_histogram[1] = 99",
    "artifacts and input files belong to jobs": f"""
        INSERT INTO jobs_artifact (id, job_id, project_id, attempt, name, media_type, size, sha256, storage_key,
                                   created_at)
        SELECT {NOBODY}, {NOBODY}, {NOBODY}, 1, 'a', '', 0, '', '', now()
    """,
    "a running job has a live worker": "UPDATE jobs_worker SET lease_until = now() - interval '1 second'",
}


@pytest.fixture
def unguarded() -> Iterator[CursorWrapper]:
    """A history of everything, and a session in which neither triggers nor references nor checks hold."""
    dead, alive = make_worker(), make_worker()
    make_job()
    job = claim_one(dead)
    ended = replace(log_line(job, 1), type="step.completed", data='{"key": "load#1"}')
    write(dead, events=[ended], steps=[step_row(job, "load#1", ended=True, result={"value": 1})])
    job = job._replace(last_seq=job.last_seq + 1)
    ask(dead, job, question())
    services.respond(job.id, by=make_caller(), answer="because")
    write(alive, settlements=[settlement(claim_one(alive), result="1")])
    make_job()
    claim_one(dead)
    end_lease(dead)
    sweep()
    claim_one(alive)
    make_job()
    with connection.cursor() as cursor:
        assert faults(cursor) == []
        with transaction.atomic():
            cursor.execute("SET LOCAL session_replication_role = replica")
            cursor.execute(
                "SELECT conname FROM pg_constraint WHERE conrelid = 'jobs_job'::regclass AND contype = 'c'"
            )
            for (name,) in cursor.fetchall():
                cursor.execute(f'ALTER TABLE jobs_job DROP CONSTRAINT "{name}"')
            yield cursor
            transaction.set_rollback(True)


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_is_found(unguarded: CursorWrapper, rule: str) -> None:
    unguarded.execute(FAULTS[rule])

    assert rule in " ".join(faults(unguarded, at_rest=rule in AT_REST))


def test_each_rule_has_a_fault_that_it_finds() -> None:
    assert FAULTS.keys() | {"every job has come to its end"} == ALWAYS.keys() | AT_REST.keys()


def test_jobs_that_are_not_over_are_found_at_rest(unguarded: CursorWrapper) -> None:
    assert [fault for fault in faults(unguarded, at_rest=True) if "come to its end (2)" in fault]
    assert Job.objects.filter(status="running").count() == 1
    assert Attempt.objects.filter(outcome="lost").count() == 1
