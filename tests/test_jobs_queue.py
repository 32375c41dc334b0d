"""The queue: claims, fences, batches, sweeps, timers, each on a real PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.utils import timezone

from jobs import claiming, pausing, queries, services
from jobs.models import Attempt, Event, Job, MinuteStat, PausedAgent, Queue, Step
from tests.jobs import (
    ask,
    claim_one,
    end_lease,
    log_line,
    make_caller,
    make_job,
    make_project,
    make_worker,
    question,
    seqs,
    settlement,
    step_row,
    sweep,
    types,
    write,
)

T = TypeVar("T")
pytestmark = pytest.mark.django_db(transaction=True)


def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run on a connection of its own, closed again by the thread that opened it."""
    try:
        return function(*args, **kwargs)
    finally:
        connections.close_all()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_workers_claiming_together_never_share_a_job(pool: ThreadPoolExecutor) -> None:
    jobs = {make_job().id for _ in range(40)}
    workers = [make_worker() for _ in range(4)]
    together = threading.Barrier(4)

    def claim_all(worker_id: UUID) -> list[UUID]:
        together.wait(10)
        taken: list[UUID] = []
        while batch := claiming.claim(worker_id, queue="default", limit=3):
            taken += [job.id for job in batch]
        return taken

    claimed = list(chain(*pool.map(lambda worker_id: in_thread(claim_all, worker_id), workers)))

    assert sorted(claimed) == sorted(jobs)


def test_a_claim_passes_a_job_that_another_session_holds_locked(pool: ThreadPoolExecutor) -> None:
    first, second = make_job(), make_job()
    worker_id = make_worker()

    with transaction.atomic():
        Job.objects.select_for_update().get(id=first.id)
        claimed = pool.submit(in_thread, claiming.claim, worker_id, queue="default", limit=2).result(10)

    assert [job.id for job in claimed] == [second.id]


def test_urgent_jobs_come_first_and_equal_ones_in_their_order() -> None:
    low, normal, later, urgent = (make_job(priority=name) for name in ("low", "normal", "normal", "urgent"))
    worker_id = make_worker()

    order = [claim_one(worker_id).id for _ in range(4)]

    assert order == [urgent.id, normal.id, later.id, low.id]


def test_a_paused_queue_gives_nothing() -> None:
    make_job()
    Queue.objects.create(name="default", paused_at=timezone.now())

    assert claiming.claim(make_worker(), queue="default", limit=1) == []


def test_a_worker_without_its_lease_can_neither_claim_nor_write_nor_renew() -> None:
    make_job()
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    end_lease(worker_id)

    with pytest.raises(queries.WorkerLeaseLost):
        claiming.claim(worker_id, queue="default", limit=1)
    with pytest.raises(queries.WorkerLeaseLost):
        write(worker_id, events=[log_line(job)])
    with pytest.raises(queries.WorkerLeaseLost):
        queries.heartbeat(worker_id, running=1, can_run=True, health={})
    assert types(job.id) == ["job.queued", "job.started"]


def test_a_job_runs_from_claim_to_result_with_gap_free_events() -> None:
    submitted = make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    write(worker_id, events=[log_line(job, 1), log_line(job, 2)])
    written = write(worker_id, settlements=[settlement(job, offset=3, result='{"rows": 2}')])

    stored = Job.objects.get(id=submitted.id)
    assert written.settled == {(job.id, 1): "completed"}
    assert (stored.status, stored.result, stored.progress, stored.last_seq) == (
        "completed",
        {"rows": 2},
        1.0,
        5,
    )
    assert seqs(job.id) == [1, 2, 3, 4, 5]
    assert types(job.id) == ["job.queued", "job.started", "log", "log", "job.completed"]
    assert Attempt.objects.get(job_id=job.id).outcome == "completed"
    assert MinuteStat.objects.get().count == 1


def test_a_batch_sent_again_changes_nothing() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    lines = [log_line(job, 1), log_line(job, 2)]
    end = [settlement(job, offset=3, result="1")]

    write(worker_id, events=lines)
    again = write(worker_id, events=lines, settlements=end)
    and_again = write(worker_id, events=lines, settlements=end)

    assert again.settled == and_again.settled == {(job.id, 1): "completed"}
    assert not and_again.refused
    assert seqs(job.id) == [1, 2, 3, 4, 5]
    assert Attempt.objects.count() == 1
    assert MinuteStat.objects.count() == 1


def test_a_zombie_cannot_write_over_its_successor() -> None:
    make_job()
    zombie, successor = make_worker(), make_worker()
    old = claim_one(zombie)
    end_lease(zombie)
    sweep()
    new = claim_one(successor)
    # Even with a lease (as if its clock had stood still) the fence of the attempt holds.
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_worker SET lease_until = now() + interval '1 minute' WHERE id = %s", [zombie]
        )

    refused = write(
        zombie,
        events=[log_line(old)],
        steps=[step_row(old, "load#1", ended=True)],
        settlements=[settlement(old, offset=2, result='"late"')],
    )

    assert refused.refused == {(old.id, old.attempt)}
    assert not refused.settled
    assert new.attempt == old.attempt + 1
    assert types(old.id) == ["job.queued", "job.started", "job.queued", "job.started"]
    assert not Step.objects.exists()
    assert Job.objects.get(id=old.id).status == "running"


def test_the_sweep_returns_jobs_of_a_dead_worker_at_their_old_place_and_keeps_history() -> None:
    make_job()
    later = make_job()
    dead, alive = make_worker(), make_worker()
    job = claim_one(dead)
    write(dead, events=[log_line(job, 1), log_line(job, 2)])
    end_lease(dead)

    swept = sweep()

    assert swept.requeued == (job.id,)
    attempt = Attempt.objects.get(job_id=job.id)
    assert (attempt.outcome, attempt.worker_id) == ("lost", dead)
    again = claim_one(alive)
    assert (again.id, again.attempt, again.lost_count) == (job.id, 2, 1)
    assert again.last_seq == 6
    assert seqs(job.id) == [1, 2, 3, 4, 5, 6]
    assert claim_one(alive).id == later.id


def test_the_sweep_leaves_live_workers_alone() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    assert sweep() == queries.Swept()
    assert Job.objects.get(id=job.id).worker_id == worker_id


def test_after_an_outage_of_the_database_nobody_is_charged_for_it() -> None:
    make_job()
    worker_id = make_worker()
    claim_one(worker_id)
    end_lease(worker_id)

    assert queries.sweep(after_start=10_000_000) == queries.Swept()
    assert len(sweep().requeued) == 1


def test_a_sweep_waits_for_a_write_that_has_begun(pool: ThreadPoolExecutor) -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    with transaction.atomic(), connection.cursor() as cursor:
        queries.lock_lease(cursor, worker_id)
        end_lease_elsewhere = pool.submit(in_thread, end_lease, worker_id)
        end_lease_elsewhere.result(10)  # no conflict: a heartbeat's update passes the key share
        swept = pool.submit(in_thread, sweep).result(10)

        assert swept == queries.Swept()  # the worker's row is locked by its own write
    assert sweep().requeued == (job.id,)


def test_a_job_that_takes_three_workers_down_fails_and_runs_alone_before() -> None:
    make_job()
    for losses in range(3):
        worker_id = make_worker()
        usual = claiming.claim(worker_id, queue="default", limit=5)
        alone = claiming.claim(worker_id, queue="default", limit=1, suspects=True)
        assert (len(usual), len(alone)) == ((1, 0) if losses < 2 else (0, 1))
        end_lease(worker_id)
        sweep()

    job = Job.objects.get()
    assert (job.status, job.status_reason, (job.error or {})["code"]) == (
        "failed",
        "worker_lost",
        "worker_lost",
    )
    assert [attempt.outcome for attempt in Attempt.objects.order_by("number")] == ["lost"] * 3


def test_workers_make_no_room_for_a_suspect_that_is_paused() -> None:
    job = make_job()
    Job.objects.filter(id=job.id).update(lost_count=queries.SUSPECT_LOSSES)

    assert claiming.survey_all(None)[1] == {"default"}
    pausing.pause_agent("echo", by=make_caller())
    assert claiming.survey_all(None)[1] == set()
    pausing.resume_agent("echo", by=make_caller())
    pausing.pause_queue("default", by=make_caller())
    assert claiming.survey_all(None)[1] == set()


def test_a_durable_step_ends_a_row_of_losses() -> None:
    from jobs.batch import Batch
    from jobs.batch import write as write_batch

    make_job()
    first, second = make_worker(), make_worker()
    claim_one(first)
    end_lease(first)
    sweep()
    job = claim_one(second)

    write_batch(
        second,
        Batch(steps=[step_row(job, "load#1", ended=True, result=1)], durable_steps={(job.id, job.attempt)}),
    )

    assert Job.objects.get().lost_count == 0


def test_a_step_that_begins_again_has_no_end_yet() -> None:
    make_job()
    worker = make_worker()
    job = claim_one(worker)

    write(worker, steps=[step_row(job, "load#1", ended=False)])
    write(worker, steps=[step_row(job, "load#1", ended=False)])

    assert Step.objects.get().ended_at is None


def test_a_step_with_a_durable_end_is_never_written_over() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    write(worker_id, steps=[step_row(job, "load#1", ended=False)])
    write(worker_id, steps=[step_row(job, "load#1", ended=True, result="first")])
    write(worker_id, steps=[step_row(job, "load#1", ended=True, result="second")])

    assert Step.objects.get().result == "first"


def test_only_completed_wins_against_a_requested_cancel() -> None:
    worker_id = make_worker()
    endings: dict[str, tuple[Job.Status, Attempt.Outcome, dict[str, Any]]] = {
        "completed": (Job.Status.COMPLETED, Attempt.Outcome.COMPLETED, {}),
        "failed": (Job.Status.FAILED, Attempt.Outcome.FAILED, {"error": {"code": "x", "message": "y"}}),
        "retried": (Job.Status.SCHEDULED, Attempt.Outcome.FAILED, {"retry_after": timedelta(seconds=9)}),
        "handed back": (Job.Status.QUEUED, Attempt.Outcome.HANDED_BACK, {}),
        "suspended": (Job.Status.WAITING_FOR_INPUT, Attempt.Outcome.SUSPENDED, {"questions": (question(),)}),
    }
    ends: dict[str, str] = {}
    for name, (status, outcome, fields) in endings.items():
        make_job()
        job = claim_one(worker_id)
        services.cancel(job.id, by=make_caller())
        written = write(worker_id, settlements=[settlement(job, status, outcome, result="1", **fields)])
        ends[name] = written.settled[(job.id, job.attempt)]

    assert ends.pop("completed") == "completed"
    assert set(ends.values()) == {"cancelled"}


def test_a_cancelled_job_of_a_dead_worker_is_not_run_again() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    services.cancel(job.id, by=make_caller())
    end_lease(worker_id)

    swept = sweep()

    assert swept.ended == (job.id,)
    assert Job.objects.get().status == "cancelled"


def test_a_retry_waits_and_keeps_its_place() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    error = {"code": "agent_error", "message": "boom"}
    write(
        worker_id,
        settlements=[
            settlement(
                job,
                Job.Status.SCHEDULED,
                Attempt.Outcome.FAILED,
                reason="retry_backoff",
                error=error,
                counts_as_failure=True,
                retry_after=timedelta(seconds=60),
            )
        ],
    )
    stored = Job.objects.get()
    assert (stored.status, stored.failed_count, stored.error) == ("scheduled", 1, None)

    assert queries.promote() == frozenset()
    Job.objects.update(run_at=timezone.now())
    assert queries.promote() == {"default"}

    after = Job.objects.get()
    assert (after.status, after.sort_at) == ("queued", stored.sort_at)
    assert types(job.id) == ["job.queued", "job.started", "job.retrying", "job.queued"]


def test_deadlines_of_jobs_that_do_not_run_are_enforced_by_any_worker() -> None:
    queued, running = make_job(), make_job()
    Job.objects.filter(id=queued.id).update(sort_at=timezone.now() + timedelta(hours=1))
    claim_one(make_worker())
    Job.objects.update(deadline_at=timezone.now() - timedelta(seconds=1))

    failed = queries.fail_overdue()

    assert failed == [queued.id]
    assert (Job.objects.get(id=queued.id).error or {})["code"] == "deadline"
    assert Job.objects.get(id=running.id).status == "running"


def test_questions_come_to_exist_with_the_wait() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    ask(worker_id, job, question("ask#1"), question("ask#2"))

    stored = Job.objects.get()
    assert (stored.status, stored.worker_id, stored.last_seq) == ("waiting_for_input", None, 5)
    assert types(job.id)[2:] == ["question.opened", "question.opened", "job.waiting"]
    assert stored.questions.filter(status="open").count() == 2


def test_a_wait_whose_questions_are_all_answered_goes_on_at_once() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    ask(worker_id, job, question("ask#1"))
    services.respond(job.id, by=make_caller(), answer="because")
    again = claim_one(worker_id)

    ask(worker_id, again, question("ask#1"))

    assert Job.objects.get().status == "queued"
    assert seqs(job.id) == list(range(1, Job.objects.get().last_seq + 1))


# --- what the database refuses whatever the code does ---


def test_the_database_refuses_any_change_of_a_final_job() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    write(worker_id, settlements=[settlement(job, result="1")])

    changes: tuple[dict[str, Any], ...] = (
        {"result": 2},
        {"status": "queued", "finished_at": None},
        {"progress": 0.5},
    )
    for change in changes:
        with pytest.raises(IntegrityError, match=r"never changes|no such edge"):
            Job.objects.update(**change)


def test_the_database_refuses_a_backward_attempt_and_unknown_edges() -> None:
    make_job()
    claim_one(make_worker())

    with pytest.raises(IntegrityError, match="never go back"):
        Job.objects.update(attempt=0)
    with pytest.raises(IntegrityError, match="no such edge"):
        Job.objects.update(status="rejected", worker_id=None, finished_at=timezone.now())


def test_the_database_refuses_states_without_what_they_need() -> None:
    make_job()

    with pytest.raises(IntegrityError, match="job_running_has_worker"):
        Job.objects.update(status="running", attempt=1)
    with pytest.raises(IntegrityError, match="job_final_is_finished"):
        Job.objects.update(status="failed")
    with pytest.raises(IntegrityError, match="job_result_if_completed"):
        Job.objects.update(result=1)


def test_the_database_refuses_a_changed_event() -> None:
    make_job()

    with pytest.raises(IntegrityError, match="an event never changes"):
        Event.objects.update(message="other")


def test_partitions_are_made_once_and_take_new_events() -> None:
    made = queries.ensure_partitions(weeks_ahead=1)

    assert queries.ensure_partitions(weeks_ahead=1) == []
    job = make_job()
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM jobs_event WHERE job_id = %s", [job.id])
        assert cursor.fetchone()[0].strip('"') in (*made, *_partitions())
        for name in made:
            cursor.execute(f'DROP TABLE "{name}"')


def _partitions() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'jobs_event'::regclass"
        )
        return [row[0].strip('"') for row in cursor.fetchall() if "default" not in row[0]]


# --- fair share, limits, pauses ---


def test_projects_take_turns_however_much_one_has_queued() -> None:
    for _ in range(12):
        make_job(make_project("greedy"))
    small = [make_job(make_project(f"small-{number}")).id for number in range(3)]

    taken = [job.id for job in claiming.claim(make_worker(), queue="default", limit=6)]

    assert set(small) < set(taken)
    assert len(taken) == 6


def test_a_heavier_project_gets_more_turns() -> None:
    light, heavy = make_project("light"), make_project("heavy", weight=3)
    for _ in range(8):
        make_job(light)
        make_job(heavy)

    taken = claiming.claim(make_worker(), queue="default", limit=8)

    assert sum(job.project_id == heavy.id for job in taken) == 6


def test_max_running_holds_over_all_claimers(pool: ThreadPoolExecutor) -> None:
    limited = make_project("limited", max_running=5)
    for number in range(40):
        make_job(limited, queue="default" if number % 2 else "other")
    workers = [make_worker() for _ in range(4)]
    together = threading.Barrier(4)

    def claim_all(worker_id: UUID) -> int:
        together.wait(10)
        return sum(
            len(claiming.claim(worker_id, queue=queue, limit=3))
            for _ in range(3)
            for queue in ("default", "other")
        )

    taken = sum(pool.map(lambda worker_id: in_thread(claim_all, worker_id), workers))

    assert taken == Job.objects.filter(status="running").count() == 5


def test_a_limited_project_does_not_hold_up_the_others() -> None:
    limited = make_project("limited", max_running=0)
    for _ in range(5):
        make_job(limited, priority="urgent")
    other = make_job(make_project("other"))

    assert [job.id for job in claiming.claim(make_worker(), queue="default", limit=3)] == [other.id]


def test_a_paused_agent_keeps_its_jobs_queued() -> None:
    job = make_job()
    assert job.agent_version is not None
    PausedAgent.objects.create(agent=job.agent_version.agent, paused_by="user:tester")
    worker_id = make_worker()

    assert claiming.claim(worker_id, queue="default", limit=1) == []
    PausedAgent.objects.all().delete()
    assert claim_one(worker_id).id == job.id


def test_a_survey_that_is_old_hides_no_new_job() -> None:
    make_job()
    worker_id = make_worker()
    seen = claiming.survey("default")
    claim_one(worker_id)
    newcomers = {make_job(priority=name).id for name in ("low", "normal", "high", "urgent")}

    taken = {job.id for job in claiming.claim(worker_id, queue="default", limit=9, seen=seen)}

    assert taken == newcomers


def test_a_job_that_comes_back_is_found_below_the_floor() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    Job.objects.update(sort_at=timezone.now() - timedelta(days=2))
    seen = claiming.survey("default")
    write(worker_id, settlements=[settlement(job, Job.Status.QUEUED, Attempt.Outcome.HANDED_BACK)])

    assert [again.id for again in claiming.claim(worker_id, queue="default", limit=1, seen=seen)] == [job.id]


def test_a_claim_walks_no_index_that_is_not_in_its_order() -> None:
    """Where few jobs are queued, another index and a sort look as cheap to the planner. Dead rows make them dear."""
    worker_id = make_worker()
    for _ in range(300):
        make_job()
    done = claiming.claim(worker_id, queue="default", limit=300)
    write(worker_id, settlements=[settlement(job) for job in done])
    make_job()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")

    def scans() -> dict[str, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute(
                "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE relname = 'jobs_job'"
            )
            return dict(cursor.fetchall())

    before = scans()
    claim_one(worker_id)
    used = {index for index, number in scans().items() if number > before[index]}

    by_key = {"jobs_job_pkey", "job_list_idx"}
    assert used <= {"job_new_idx", "job_back_idx", "job_share_idx", *by_key}


def test_claims_read_no_more_rows_than_they_take_however_long_the_queue() -> None:
    """The plan, not the time: every scan of the queue is an index scan that stops at its limit."""
    for _ in range(3):
        make_job()
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        seen = claiming.survey("default")
        params: dict[str, Any] = {
            "worker_id": make_worker(),
            "queue": "default",
            "limit": 1,
            "suspect_losses": 2,
            "paused": [],
            "priorities": list(seen.floors),
            "floors": list(seen.floors.values()),
        }
        cursor.execute("EXPLAIN " + claiming.CLAIM_ORDERED, params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
        cursor.execute("RESET enable_seqscan")

    assert "job_new_idx" in plan
    assert "job_back_idx" in plan
    assert "Seq Scan on jobs_job" not in plan
