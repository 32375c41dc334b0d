"""The worker's pen: what cannot be stored costs the job that wrote it, and nobody else."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
from django.db import InternalError, OperationalError, connection
from django.utils import timezone

from engine import meters
from jobs import batch, claiming
from jobs.claiming import Claimed
from jobs.execution.outcomes import StepBegin
from jobs.execution.ports import LeaseLostError
from jobs.models import Attempt, Event, Job, Step
from jobs.recorder import AttemptRecorder, Clock, Writer
from tests.jobs import claim_one, end_lease, make_job, make_worker, seqs, settlement, sweep, types, write

T = TypeVar("T")
pytestmark = pytest.mark.django_db(transaction=True)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """On a connection of its own, closed again by the thread that opened it."""

    def call() -> T:
        try:
            return function(*arguments)
        finally:
            connection.close()

    return await asyncio.to_thread(call)


def with_writer(worker_id: UUID, use: Callable[[Writer], Awaitable[T]]) -> T:
    """Use a writer while it runs, and end it."""

    async def main() -> T:
        writer = Writer(worker_id, in_database=in_thread, on_worker_lost=lambda: None)
        running = asyncio.create_task(writer.run())
        try:
            async with asyncio.timeout(20):
                result = await use(writer)
                await writer.close()
                await running
                return result
        finally:
            running.cancel()

    return asyncio.run(main())


def recorder(writer: Writer, job: Claimed) -> AttemptRecorder:
    return AttemptRecorder(writer, job, Clock(timezone.now()))


def two_jobs() -> tuple[UUID, Claimed, Claimed]:
    make_job()
    make_job()
    worker_id = make_worker()
    return worker_id, claim_one(worker_id), claim_one(worker_id)


def test_rows_that_cannot_be_stored_cost_only_the_job_that_wrote_them() -> None:
    worker_id, good, bad = two_jobs()

    async def use(writer: Writer) -> list[Any]:
        fine, broken = recorder(writer, good), recorder(writer, bad)
        fine.event("log", message="kept")
        broken.event("log", message="lost")
        writer.add().events[-1] = replace(writer.add().events[-1], data="{no json")
        flushed = await asyncio.gather(fine.flush(), broken.flush(), return_exceptions=True)
        assert writer.unstorable == {(bad.id, bad.attempt)}
        return list(flushed)

    assert [type(result) for result in with_writer(worker_id, use)] == [type(None), LeaseLostError]
    assert types(good.id)[-1] == "log"
    assert types(bad.id)[-1] == "job.started"


def test_writes_that_come_after_the_lease_has_gone_are_refused_and_counted() -> None:
    worker_id, late, _ = two_jobs()
    end_lease(worker_id)
    sweep()
    before = meters.LATE_WRITES._value.get()

    async def use(writer: Writer) -> list[Any]:
        stale = recorder(writer, late)
        stale.event("log", message="too late")
        return list(await asyncio.gather(stale.flush(), return_exceptions=True))

    assert [type(result) for result in with_writer(worker_id, use)] == [LeaseLostError]
    assert "log" not in types(late.id)
    assert meters.LATE_WRITES._value.get() == before + 1


def test_a_row_beyond_the_databases_limits_is_not_tried_for_ever() -> None:
    worker_id, good, bad = two_jobs()
    endless = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(3_000))  # no index takes that

    async def use(writer: Writer) -> list[Any]:
        steps = [
            recorder(writer, job).begin_step(StepBegin(key, "step", ""))
            for job, key in ((good, "a#1"), (bad, endless))
        ]
        return list(await asyncio.gather(*steps, return_exceptions=True))

    assert [type(result) for result in with_writer(worker_id, use)] == [type(None), LeaseLostError]
    assert [step.key for step in Step.objects.all()] == ["a#1"]


@pytest.mark.parametrize("fault", [RuntimeError("ours"), InternalError("the server's")])
def test_a_fault_nobody_foresaw_ends_no_writing(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    worker_id, one, other = two_jobs()
    faults = [fault]
    usual = batch.write

    def once_broken(*arguments: Any) -> batch.Written:
        if faults:
            raise faults.pop()
        return usual(*arguments)

    monkeypatch.setattr(batch, "write", once_broken)

    async def use(writer: Writer) -> None:
        pens = [recorder(writer, job) for job in (one, other)]
        for pen in pens:
            pen.event("log")
        await asyncio.gather(*(pen.flush() for pen in pens))

    with_writer(worker_id, use)

    assert types(one.id)[-1] == types(other.id)[-1] == "log"


def test_a_transaction_that_the_server_ended_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGSTOP in the middle of one: idle_in_transaction_session_timeout has closed it."""
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    usual, ended = batch.write, [True]

    def once_ended(*arguments: Any) -> batch.Written:
        if ended.pop() if ended else False:
            from psycopg.errors import IdleInTransactionSessionTimeout

            raise InternalError("terminating connection") from IdleInTransactionSessionTimeout()
        return usual(*arguments)

    monkeypatch.setattr(batch, "write", once_ended)

    async def use(writer: Writer) -> None:
        pen = recorder(writer, job)
        pen.event("log")
        await pen.flush()

    with_writer(worker_id, use)

    assert types(job.id)[-1] == "log"


def test_of_two_settlements_on_their_way_the_first_counts() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    async def use(writer: Writer) -> list[str | None]:
        pen = recorder(writer, job)
        ends = [
            settlement(job, result="1"),
            settlement(job, Job.Status.QUEUED, Attempt.Outcome.HANDED_BACK),
        ]
        return list(await asyncio.gather(*(pen.settle(end) for end in ends)))

    assert with_writer(worker_id, use) == ["completed", "completed"]
    assert types(job.id) == ["job.queued", "job.started", "job.completed"]


def test_whoever_waits_for_a_writer_that_ends_is_told() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)

    async def main() -> None:
        async def away(*_: Any, **__: Any) -> Any:
            raise OperationalError("the database is away")

        writer = Writer(worker_id, in_database=away, on_worker_lost=lambda: None)
        running = asyncio.create_task(writer.run())
        pen = recorder(writer, job)
        pen.event("log")
        flushing: Coroutine[Any, Any, None] = pen.flush()
        waiting = asyncio.create_task(flushing)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(LeaseLostError):
            async with asyncio.timeout(20):
                await waiting

    asyncio.run(main())


def test_a_job_given_back_goes_on_behind_all_that_it_has_told() -> None:
    make_job()
    worker_id = make_worker()
    job = claim_one(worker_id)
    event = batch.EventRow(
        job.id, job.attempt, job.last_seq + 1, timezone.now(), "log", "stdout", "info", "said", json.dumps({})
    )
    write(worker_id, events=[event])

    again = claiming.claimed_again(worker_id, job.id, job.attempt)
    assert again is not None
    write(worker_id, settlements=[settlement(again, Job.Status.QUEUED, Attempt.Outcome.HANDED_BACK)])

    assert claim_one(worker_id).attempt == 2
    assert seqs(job.id) == [1, 2, 3, 4, 5]
    assert Event.objects.filter(job_id=job.id, type="job.queued").count() == 2


def test_a_reply_that_comes_late_does_not_turn_the_clock_back() -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    clock = Clock(noon)

    clock.set(noon - timedelta(seconds=4))
    assert noon <= clock.now() < noon + timedelta(seconds=4)

    clock.set(noon + timedelta(seconds=9))
    assert clock.now() >= noon + timedelta(seconds=9)

    clock.set(noon - timedelta(hours=1))
    assert clock.now() < noon
