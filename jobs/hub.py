"""Live events for any number of watchers: one LISTEN connection per web process, one read per job and news.

The table is the truth (I7). A notification only says "look": the hub then reads what is new, once for each job and
for all jobs together, encodes each event once, and keeps what not all have taken yet in a short ring, which all who
watch the job share. A watcher is a cursor: it takes what the ring has beyond the cursor, and reads the table by itself
where the ring does not reach back that far. So nobody is buffered for, a slow reader costs the others nothing, and
what a lost notification, a lost connection or a restart leaves out is found by the cursor. Each second every followed
job is looked at without having been asked for.

Everything here runs on the event loop of the web process but for the reads, which have threads of their own.
"""

import asyncio
import bisect
import json
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseTrouble
from django.db import close_old_connections, connection

from jobs.errors import TooManyStreams
from jobs.listening import hints
from jobs.models import Job
from jobs.serializers import event_json
from jobs.wakeups import JOB_CHANNEL

log = logging.getLogger("engine.hub")

# Wait this long after a notification for more of them: a job that talks is read some 60 times a second.
COALESCE_SECONDS = 0.015
# Look at every followed job this often, notified or not (I7).
POLL_SECONDS = 1.0
# Look this often whether those who watch still may.
ACCESS_SECONDS = 2.0
# Between tries while the database is away.
RETRY_SECONDS = 0.5
# Events per read and job.
PAGE = 500
# Jobs per read.
JOBS_A_READ = 500
# What one job's ring holds at most, beside ENGINE_STREAM_BUFFER_BYTES.
RING_LINES = 1_000
# Threads, and so database connections, that read.
THREADS = 4

FINAL_TYPES = frozenset(f"job.{status}" for status in Job.FINAL)

T = TypeVar("T")


class AccessEnded(Exception):
    """Whoever watches may no longer: the key was revoked, the session ended."""


class HubFailed(Exception):
    """The hub lost one of its tasks to a fault of ours; the next watcher starts it anew."""


@dataclass(frozen=True, slots=True)
class Line:
    """One event, encoded once for all who watch."""

    seq: int
    type: str
    source: str
    level: str
    text: str  # the JSON object

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return self.type in FINAL_TYPES


class Access(Protocol):
    """The right by which somebody watches."""

    @property
    def name(self) -> Hashable:
        """Equal for watches that stand and fall together."""

    def holds(self) -> bool:
        """Whether it still allows to watch jobs. Called in a database thread."""


class Feed:
    """One followed job: its newest events, shared by all who watch it."""

    def __init__(self, job_id: UUID, head: int) -> None:
        self.job_id = job_id
        self.head = head  # everything up to here has been read
        self.floor = head  # the ring holds what is beyond this
        self.final: Line | None = None  # the last event, once the job has ended
        self.watches: set[Watch] = set()
        self._ring: deque[Line] = deque()
        self._bytes = 0

    def append(self, lines: Sequence[Line]) -> None:
        """News, in order. Wakes everybody."""
        for line in lines:
            self.head = line.seq
            self._ring.append(line)
            self._bytes += len(line.text)
            if line.is_final:
                self.final = line
        taken = min((watch.cursor for watch in self.watches), default=self.head)  # by everybody
        while self._ring and (
            self._ring[0].seq <= taken
            or len(self._ring) > RING_LINES
            or self._bytes > settings.ENGINE_STREAM_BUFFER_BYTES
        ):
            oldest = self._ring.popleft()
            self.floor = oldest.seq
            self._bytes -= len(oldest.text)
        for watch in self.watches:
            watch.wake()

    def since(self, cursor: int) -> list[Line] | None:
        """The lines beyond the cursor; None where the ring does not reach back that far."""
        if cursor < self.floor:
            return None
        if cursor >= self.head:
            return []
        first = bisect.bisect_right(self._ring, cursor, key=lambda line: line.seq)
        return [self._ring[index] for index in range(first, len(self._ring))]


class Watch:
    """One reader of one job's events, at its own pace: everything beyond its cursor, once and in order."""

    def __init__(self, hub: "Hub", feed: Feed, *, cursor: int, access: Access) -> None:
        self.job_id = feed.job_id
        self.cursor = cursor
        self.access = access
        self._hub = hub
        self._feed = feed
        self._news = asyncio.Event()
        self._refusal: Exception | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the job has ended and its last event has been taken."""
        return self._feed.final is not None and self.cursor >= self._feed.final.seq

    @property
    def final_status(self) -> str:
        """How the job ended, or an empty text while it has not."""
        return self._feed.final.type.removeprefix("job.") if self._feed.final else ""

    async def lines(self, *, patience: float) -> list[Line]:
        """The next lines, at most PAGE. Empty when none came for `patience` seconds, or none can come any more.

        Raises AccessEnded or HubFailed.
        """
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            self._news.clear()
            if self._refusal is not None:
                raise self._refusal
            found = self._feed.since(self.cursor)
            if found is None:
                found = await self._hub.read_page(self.job_id, self.cursor)
                if not found:
                    # Behind the floor without a row in between: its events are gone (retention).
                    self.cursor = max(self.cursor, self._feed.floor)
                    continue
            if found:
                del found[PAGE:]
                self.cursor = found[-1].seq
                return found
            if self.is_ended:
                return []
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return []

    def wake(self) -> None:
        """There may be news."""
        self._news.set()

    def refuse(self, reason: Exception) -> None:
        """End this watch: its next `lines` raises."""
        self._refusal = reason
        self.wake()

    def close(self) -> None:
        """Watch no more."""
        self._hub.forget(self)


class Hub:
    """One per web process, on its event loop. It starts with the first watch."""

    def __init__(self) -> None:
        self._feeds: dict[UUID, Feed] = {}
        self._watches: set[Watch] = set()
        self._dirty: set[UUID] = set()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reads: dict[tuple[UUID, int], asyncio.Task[list[Line]]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hub")

    def follow(self, job_id: UUID, *, after: int, head: int, access: Access) -> Watch:
        """Watch a job's events beyond `after`. `head` is the number of its last event, as read just before.

        Whoever asks has made sure that `access` allows it; from then on the hub does. Raises TooManyStreams.
        """
        each = sum(watch.access.name == access.name for watch in self._watches)
        if each >= settings.ENGINE_MAX_STREAMS_PER_KEY or len(self._watches) >= settings.ENGINE_MAX_STREAMS:
            raise TooManyStreams(headers={"Retry-After": "5"})
        self._start()
        feed = self._feeds.get(job_id)
        if feed is None:
            # One before the head, so that a job that has ended already is seen to have.
            feed = self._feeds[job_id] = Feed(job_id, max(0, head - 1))
        watch = Watch(self, feed, cursor=min(after, head), access=access)
        feed.watches.add(watch)
        self._watches.add(watch)
        self._look_at({job_id})
        return watch

    def forget(self, watch: Watch) -> None:
        """Drop a watch, and its job's feed with the last one."""
        self._watches.discard(watch)
        feed = self._feeds.get(watch.job_id)
        if feed is not None:
            feed.watches.discard(watch)
            if not feed.watches:
                del self._feeds[watch.job_id]

    async def read_page(self, job_id: UUID, after: int) -> list[Line]:
        """The next events from the table, waiting out its absence. Readers at the same place share one read."""
        key = (job_id, after)
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(self._read_page(job_id, after))
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        # Shielded: one reader who leaves must not take the page from the others. Copied: each cuts its own.
        return list(await asyncio.shield(task))

    async def _read_page(self, job_id: UUID, after: int) -> list[Line]:
        news = await self._insist(lambda: read_news([(job_id, after)]))
        return news.get(job_id, [])

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run database work in one of the hub's threads. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, with_connection, work, *arguments)

    async def _insist(self, work: Callable[[], T]) -> T:
        """As `in_thread`, again and again while the database is away."""
        while True:
            try:
                return await self.in_thread(work)
            except (
                DatabaseTrouble,
                ImproperlyConfigured,
            ) as error:  # the latter: the embedded server is down
                log.warning("Events cannot be read for a moment: %s", str(error).strip())
                await asyncio.sleep(RETRY_SECONDS)

    # --- the tasks ---

    def _start(self) -> None:
        if self._tasks:
            return
        for work in (self._listen(), self._pump(), self._poll(), self._watch_access()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._on_task_end)
            self._tasks.append(task)

    def _on_task_end(self, task: "asyncio.Task[None]") -> None:
        """None of the tasks ever ends by itself: without one of them watchers would wait for nothing."""
        if task.cancelled() or task not in self._tasks:
            return
        log.error("The hub stops and lets its watchers connect anew", exc_info=task.exception())
        tasks, self._tasks = self._tasks, []
        for other in tasks:
            other.cancel()
        for watch in self._watches:
            watch.refuse(HubFailed())
        self._feeds.clear()

    def _look_at(self, job_ids: set[UUID]) -> None:
        followed = job_ids & self._feeds.keys()
        if followed:
            self._dirty |= followed
            self._news.set()

    async def _listen(self) -> None:
        """Hear of news. After each new connection everything is looked at: what was said meanwhile is lost."""
        async for hint in hints(JOB_CHANNEL):
            self._look_at(set(self._feeds) if hint is None else _ids(hint.payload))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self._look_at(set(self._feeds))

    async def _pump(self) -> None:
        """Read what is new and hand it out."""
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_SECONDS)
            self._news.clear()
            dirty, self._dirty = self._dirty, set()
            feeds = [self._feeds[job_id] for job_id in dirty if job_id in self._feeds]
            for start in range(0, len(feeds), JOBS_A_READ):
                await self._refresh(feeds[start : start + JOBS_A_READ])

    async def _refresh(self, feeds: Sequence[Feed]) -> None:
        wanted = [(feed.job_id, feed.head) for feed in feeds if feed.final is None]
        if not wanted:
            return
        news = await self._insist(lambda: read_news(wanted))
        for feed in feeds:
            lines = news.get(feed.job_id, [])
            if lines:
                feed.append(lines)
            if len(lines) == PAGE:
                self._look_at({feed.job_id})

    async def _watch_access(self) -> None:
        """End the watches of those who no longer may. While the database is away they get no news either."""
        while True:
            await asyncio.sleep(ACCESS_SECONDS)
            asked: dict[Hashable, list[Watch]] = {}
            for watch in self._watches:
                asked.setdefault(watch.access.name, []).append(watch)
            for watches in asked.values():
                if not await self._insist(watches[0].access.holds):
                    for watch in watches:
                        watch.refuse(AccessEnded())


hub = Hub()


# LATERAL: for each job one short walk along the primary key, whatever the others hold.
NEWS = """
SELECT event.job_id, event.seq, event.attempt, event.at, event.type, event.source, event.level, event.message,
       event.data
  FROM unnest(%(jobs)s::uuid[], %(cursors)s::bigint[]) AS followed (job_id, cursor)
 CROSS JOIN LATERAL (
    SELECT * FROM jobs_event WHERE job_id = followed.job_id AND seq > followed.cursor ORDER BY seq LIMIT %(page)s
 ) AS event
 ORDER BY event.job_id, event.seq
"""


def read_news(wanted: Sequence[tuple[UUID, int]]) -> dict[UUID, list[Line]]:
    """Up to PAGE events beyond the cursor of each of these jobs, in order; jobs without any are left out."""
    news: dict[UUID, list[Line]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            NEWS,
            {
                "jobs": [job_id for job_id, _ in wanted],
                "cursors": [after for _, after in wanted],
                "page": PAGE,
            },
        )
        for job_id, *row in cursor.fetchall():
            news.setdefault(job_id, []).append(_line(*row))
    return news


def _line(
    seq: int, attempt: int, at: datetime, type: str, source: str, level: str, message: str, data: str | None
) -> Line:
    # Django reads jsonb as text from a plain cursor.
    event = event_json(
        seq, attempt, at, type, source, level, message, None if data is None else json.loads(data)
    )
    return Line(seq, type, source, level, json.dumps(event, ensure_ascii=False, separators=(",", ":")))


def with_connection(work: Callable[..., T], *arguments: Any) -> T:
    """Database work in a lasting thread: a connection that broke or grew old is replaced first."""
    close_old_connections()
    return work(*arguments)


def _ids(payload: str) -> set[UUID]:
    """The job ids of a notification. Anybody with a database session can send one, so it may hold anything."""
    ids = set()
    for part in payload.split(","):
        try:
            ids.add(UUID(part))
        except ValueError:
            log.warning("A notification on %s held no job id", JOB_CHANNEL)
    return ids
