"""The hub by itself: one read for many watchers, a short memory, and cursors that lose and repeat nothing."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings as installed
from django.db import DatabaseError

from engine.bridge import ClientGone
from engine.server import Backpressure
from jobs import hub as hubs
from jobs.errors import TooManyStreams
from jobs.hub import AccessEnded, Hub, HubFailed, Line, Watch
from jobs.listening import Hint

SECONDS = 5.0


class Table:
    """The events of all jobs, and how often they were read."""

    def __init__(self) -> None:
        self.rows: dict[UUID, list[Line]] = {}
        self.reads: Counter[tuple[UUID, int]] = Counter()
        self.is_away = False
        self.refused = 0

    def write(self, job_id: UUID, count: int, *, size: int = 10, last: str = "log") -> None:
        rows = self.rows.setdefault(job_id, [])
        for number in range(count):
            kind = last if number == count - 1 else "log"
            rows.append(Line(len(rows) + 1, kind, "stdout", "info", "x" * size))

    def head(self, job_id: UUID) -> int:
        return len(self.rows.get(job_id, []))

    def read(self, wanted: Sequence[tuple[UUID, int]]) -> dict[UUID, list[Line]]:
        if self.is_away:
            self.refused += 1
            raise DatabaseError("the database is away")
        self.reads.update(wanted)
        news = {job_id: self.rows.get(job_id, [])[after : after + hubs.PAGE] for job_id, after in wanted}
        return {job_id: lines for job_id, lines in news.items() if lines}


class Right:
    """A right to watch that a test can end."""

    def __init__(self, name: Hashable = "key") -> None:
        self.name = name
        self.is_good = True

    def holds(self) -> bool:
        return self.is_good


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()

    async def silence(*channels: str) -> AsyncIterator[Hint | None]:
        await asyncio.Event().wait()
        yield None  # a generator

    monkeypatch.setattr(hubs, "read_news", made.read)
    monkeypatch.setattr(hubs, "hints", silence)
    monkeypatch.setattr(hubs, "with_connection", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(hubs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(hubs, "ACCESS_SECONDS", 0.01)
    monkeypatch.setattr(hubs, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(hubs, "COALESCE_SECONDS", 0.0)
    return made


def run(test: Callable[[Hub], Awaitable[Any]]) -> Any:
    """Run a test on a loop of its own, with a hub that is gone afterwards."""

    async def main() -> Any:
        hub = Hub()
        async with asyncio.timeout(30):
            return await test(hub)

    return asyncio.run(main())


async def take(watch: Watch, until: int) -> list[int]:
    """The numbers a watch gives, up to and including one."""
    seen: list[int] = []
    while not seen or seen[-1] < until:
        lines = await watch.lines(patience=SECONDS)
        assert lines, f"nothing came after {seen[-1:]}"
        seen += [line.seq for line in lines]
    return seen


def follow(hub: Hub, table: Table, job_id: UUID, *, after: int = 0, access: Right | None = None) -> Watch:
    return hub.follow(job_id, after=after, head=table.head(job_id), access=access or Right())


def test_stored_events_come_first_and_new_ones_after(table: Table) -> None:
    job = uuid4()
    table.write(job, 3)

    async def test(hub: Hub) -> None:
        watch = follow(hub, table, job, after=1)
        assert await take(watch, 3) == [2, 3]
        table.write(job, 2)
        assert await take(watch, 5) == [4, 5]

    run(test)


def test_new_events_are_read_once_however_many_watch(table: Table) -> None:
    job = uuid4()
    table.write(job, 5)

    async def test(hub: Hub) -> None:
        watches = [follow(hub, table, job, after=5) for _ in range(200)]
        await asyncio.gather(*(watch.lines(patience=0.05) for watch in watches))
        table.reads.clear()
        table.write(job, 10)

        seen = await asyncio.gather(*(take(watch, 15) for watch in watches))

        assert seen == [list(range(6, 16))] * 200
        assert table.reads[job, 5] <= 5  # polls in between, but nothing for each watcher
        assert sum(table.reads.values()) < 50

    run(test)


def test_watchers_that_come_together_share_their_reads_of_the_past(table: Table) -> None:
    job = uuid4()
    table.write(job, 1_200)

    async def test(hub: Hub) -> None:
        watches = [follow(hub, table, job) for _ in range(100)]

        seen = await asyncio.gather(*(take(watch, 1_200) for watch in watches))

        assert seen == [list(range(1, 1_201))] * 100
        assert table.reads[job, 0] + table.reads[job, 500] < 10

    run(test)


def test_what_all_have_taken_is_kept_by_nobody(table: Table) -> None:
    job = uuid4()
    table.write(job, 1)

    async def test(hub: Hub) -> None:
        watches = [follow(hub, table, job, after=1) for _ in range(3)]
        for _ in range(5):
            table.write(job, 100)
            await asyncio.gather(*(take(watch, table.head(job)) for watch in watches))
        (feed,) = hub._feeds.values()

        assert len(feed._ring) <= 100  # the last news alone

    run(test)


def test_a_slow_reader_keeps_nothing_in_memory_and_loses_nothing(table: Table) -> None:
    job = uuid4()
    table.write(job, 1)

    async def test(hub: Hub) -> None:
        slow, quick = follow(hub, table, job, after=1), follow(hub, table, job, after=1)
        for _ in range(20):
            table.write(job, 500, size=1_000)
            await take(quick, table.head(job))
        (feed,) = hub._feeds.values()

        assert feed._bytes <= installed.ENGINE_STREAM_BUFFER_BYTES
        assert len(feed._ring) <= hubs.RING_LINES
        assert feed.floor > slow.cursor
        assert await take(slow, 10_001) == list(range(2, 10_002))

    run(test)


def test_the_end_is_seen_by_who_was_there_and_by_who_comes_later(table: Table) -> None:
    job = uuid4()
    table.write(job, 2)

    async def test(hub: Hub) -> None:
        early = follow(hub, table, job)
        assert await take(early, 2) == [1, 2]
        assert not early.is_ended
        table.write(job, 1, last="job.completed")
        assert await take(early, 3) == [3]
        assert await early.lines(patience=SECONDS) == []
        assert (early.is_ended, early.final_status) == (True, "completed")
        early.close()
        for after in (0, 2, 3, 999):  # the last two have seen it all
            late = follow(hub, table, job, after=after)
            seen = [line.seq for line in await late.lines(patience=SECONDS)]
            assert seen == list(range(after + 1, 4))
            assert await late.lines(patience=SECONDS) == []
            assert late.is_ended
            late.close()

    run(test)


def test_patience_ends_without_news(table: Table) -> None:
    job = uuid4()
    table.write(job, 1)

    async def test(hub: Hub) -> None:
        watch = follow(hub, table, job, after=1)
        assert await watch.lines(patience=0.02) == []
        assert not watch.is_ended

    run(test)


def test_the_absence_of_the_database_is_waited_out(table: Table) -> None:
    job = uuid4()
    table.write(job, 3)

    async def test(hub: Hub) -> None:
        watch, behind = follow(hub, table, job, after=3), follow(hub, table, job)
        table.is_away = True
        table.write(job, 1)
        assert await watch.lines(patience=0.05) == []
        reading = asyncio.create_task(take(behind, 4))
        while table.refused < 5:
            await asyncio.sleep(0)
        table.is_away = False
        assert await take(watch, 4) == [4]
        assert await reading == [1, 2, 3, 4]

    run(test)


def test_watchers_at_random_places_and_paces_each_see_every_event_once(table: Table) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    jobs = [uuid4() for _ in range(5)]

    async def test(hub: Hub) -> None:
        async def reader(job: UUID) -> None:
            seen: list[int] = []
            while not (table.rows.get(job) and table.rows[job][-1].is_final and len(seen) == table.head(job)):
                watch = follow(hub, table, job, after=len(seen))
                for _ in range(dice.randrange(1, 6)):
                    lines = await watch.lines(patience=0.02)
                    seen += [line.seq for line in lines]
                    await asyncio.sleep(dice.random() * 0.01)
                watch.close()
            assert seen == list(range(1, table.head(job) + 1))

        async def writer(job: UUID) -> None:
            for _ in range(60):
                table.write(job, dice.randrange(1, 120), size=dice.randrange(1, 2_000))
                await asyncio.sleep(dice.random() * 0.01)
            table.write(job, 1, last="job.failed")

        await asyncio.gather(*(writer(job) for job in jobs), *(reader(job) for job in jobs for _ in range(6)))
        assert hub._feeds == {}
        assert hub._watches == set()

    run(test)


def test_a_right_that_ends_ends_all_its_watches_and_no_other(table: Table) -> None:
    job, good, bad = uuid4(), Right("good"), Right("bad")
    table.write(job, 1)

    async def test(hub: Hub) -> None:
        kept = follow(hub, table, job, after=1, access=good)
        ended = [follow(hub, table, job, after=1, access=bad) for _ in range(2)]
        bad.is_good = False
        for watch in ended:
            with pytest.raises(AccessEnded):
                await watch.lines(patience=SECONDS)
        table.write(job, 1)
        assert await take(kept, 2) == [2]

    run(test)


def test_a_fault_in_the_hub_sends_its_watchers_away_instead_of_letting_them_wait(
    table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = uuid4()
    table.write(job, 1)

    def broken(wanted: Any) -> Any:
        raise RuntimeError("a fault of ours")

    async def test(hub: Hub) -> None:
        watch = follow(hub, table, job, after=1)
        await watch.lines(patience=0.05)
        monkeypatch.setattr(hubs, "read_news", broken)
        with pytest.raises(HubFailed):
            await watch.lines(patience=SECONDS)
        watch.close()
        monkeypatch.setattr(hubs, "read_news", table.read)
        again = follow(hub, table, job)
        assert await take(again, 1) == [1]

    run(test)
    assert "a fault of ours" in caplog.text


def test_streams_are_capped_for_each_right(table: Table, settings: Any) -> None:
    settings.ENGINE_MAX_STREAMS_PER_KEY = 2
    job = uuid4()

    async def test(hub: Hub) -> None:
        first = follow(hub, table, job)
        follow(hub, table, job)
        with pytest.raises(TooManyStreams):
            follow(hub, table, job)
        follow(hub, table, job, access=Right("other"))
        first.close()
        follow(hub, table, job)

    run(test)


def test_streams_are_capped_for_a_process(table: Table, settings: Any) -> None:
    settings.ENGINE_MAX_STREAMS = 2

    async def test(hub: Hub) -> None:
        first = follow(hub, table, uuid4())
        follow(hub, table, uuid4(), access=Right("other"))
        with pytest.raises(TooManyStreams):
            follow(hub, table, uuid4(), access=Right("third"))
        first.close()
        follow(hub, table, uuid4(), access=Right("third"))

    run(test)


def test_a_client_that_does_not_read_is_waited_for_and_then_cut_off(settings: Any) -> None:
    async def test() -> None:
        client = Backpressure()
        await client.room()
        client.pauseProducing()
        settings.ENGINE_STALL_SECONDS = 600.0
        waiting = asyncio.create_task(client.room())
        await asyncio.sleep(0)
        client.resumeProducing()
        await waiting
        client.pauseProducing()
        settings.ENGINE_STALL_SECONDS = 0.01
        with pytest.raises(ClientGone):
            await client.room()

    asyncio.run(test())


def test_a_notification_may_hold_anything() -> None:
    job = uuid4()

    assert hubs._ids(f"{job},,not-an-id,{'x' * 5000}") == {job}
