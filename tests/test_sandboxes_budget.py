"""The budget that all workers share: exact over processes, and right again after a crash."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from jobs.models import Job, SandboxBudget, SandboxSlot
from jobs.sandboxes.base import SandboxBusy
from jobs.sandboxes.e2b import budget as module
from jobs.sandboxes.e2b.budget import Found, PostgresBudget
from tests.jobs import make_job

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a slot."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)


async def using(most: int, per_second: float, takes: int) -> int:
    """One worker's tries, each answered at once; how many went well."""
    budget = PostgresBudget("e2b", most=most, per_second=per_second)
    try:
        await budget.installation()
        answers = await asyncio.gather(
            *(budget.take(uuid4(), 1) for _ in range(takes)), return_exceptions=True
        )
        assert all(isinstance(answer, UUID | SandboxBusy) for answer in answers), answers
        return sum(isinstance(answer, UUID) for answer in answers)
    finally:
        await budget.close()


@pytest.mark.usefixtures("impatient")
def test_workers_that_take_at_once_never_exceed_the_count() -> None:
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: asyncio.run(using(7, 1000.0, 5)), range(4)))

    assert sum(got) == SandboxSlot.objects.count() == 7


@pytest.mark.usefixtures("impatient")
def test_workers_that_begin_at_once_share_one_rate() -> None:
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: asyncio.run(using(1000, 3.0, 5)), range(4)))

    assert 3 <= sum(got) <= 6  # the burst, and what a second or so brings


@pytest.mark.usefixtures("impatient")
def test_a_slot_counts_until_it_is_given_back_sleeps_or_runs_out() -> None:
    async def work() -> list[bool]:
        budget = PostgresBudget("e2b", most=1, per_second=1000.0)

        async def has_room() -> bool:
            try:
                await budget.release(slot=await budget.take(uuid4(), 1))
            except SandboxBusy:
                return False
            return True

        seen = []
        await budget.installation()
        slot = await budget.take(uuid4(), 1)
        await budget.note(slot, "i123")
        seen.append(await has_room())
        await budget.release(ref="i123")
        seen.append(await has_room())
        slot = await budget.take(uuid4(), 1)
        await budget.park(slot)
        seen.append(await has_room())
        await budget.take(uuid4(), 1)
        late = timezone.now() - timedelta(seconds=1)
        await budget._call(lambda: SandboxSlot.objects.filter(parked_at=None).update(expires_at=late))
        seen.append(await has_room())
        await budget.close()
        return seen

    assert asyncio.run(work()) == [False, True, True, True]


@pytest.mark.usefixtures("impatient")
def test_after_too_many_requests_nobody_asks_for_a_while() -> None:
    async def work() -> None:
        one, other = (PostgresBudget("e2b", most=100, per_second=1000.0) for _ in range(2))
        await one.installation()
        await one.release(slot=await one.take(uuid4(), 1))
        await one.cool_down()
        with pytest.raises(SandboxBusy):
            await other.take(uuid4(), 1)
        await asyncio.gather(one.close(), other.close())

    asyncio.run(work())
    assert SandboxBudget.objects.get().refilled_at > timezone.now()


def test_one_worker_sweeps_each_minute() -> None:
    async def work() -> list[bool]:
        budgets = [PostgresBudget("e2b", most=1, per_second=1.0) for _ in range(3)]
        await budgets[0].installation()
        turns = await asyncio.gather(*(budget.is_turn_to_sweep() for budget in budgets))
        await asyncio.gather(*(budget.close() for budget in budgets))
        return list(turns)

    assert sorted(asyncio.run(work())) == [False, False, True]


def test_a_sandbox_is_an_orphan_when_no_slot_lives_for_it() -> None:
    waiting, over = make_job(), make_job()
    Job.objects.filter(id=over.id).update(status="cancelled", finished_at=timezone.now())

    async def work() -> set[str]:
        budget = PostgresBudget("e2b", most=100, per_second=1000.0)
        await budget.installation()
        live, opening = uuid4(), uuid4()
        await budget.note(await budget.take(live, 1), "live")
        await budget.take(opening, 2)
        for job, ref in ((waiting.id, "asleep"), (over.id, "useless")):
            slot = await budget.take(job, 1)
            await budget.note(slot, ref)
            await budget.park(slot)
        early = timezone.now() - timedelta(minutes=2)
        await budget._call(lambda: SandboxSlot.objects.exclude(parked_at=None).update(parked_at=early))
        dead = await budget.take(uuid4(), 1)
        await budget.note(dead, "dead")
        await budget._call(lambda: SandboxSlot.objects.filter(id=dead).update(expires_at=early))
        found = [
            Found("live", live, 1, paused=False),
            Found("being-made", opening, 2, paused=False),
            Found("of-its-last-attempt", opening, 1, paused=False),
            Found("asleep", waiting.id, 1, paused=True),
            Found("useless", over.id, 1, paused=True),
            Found("dead", uuid4(), 1, paused=False),
            Found("nobody's", None, 0, paused=False),
        ]
        orphans = await budget.orphans(found)
        await budget.close()
        return orphans

    assert asyncio.run(work()) == {"of-its-last-attempt", "useless", "dead", "nobody's"}
