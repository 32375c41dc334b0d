"""The worker's pen: what running jobs say becomes durable here, many jobs in one commit.

`Writer` is one per worker and the only place it writes events, steps, artifacts and results from. `AttemptRecorder` is
one per attempt: it numbers that job's events (their single writer, I6) and refuses everything once the fence has.
All of it lives on the worker's event loop; only the batch itself runs in a database thread.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError
from uuid_utils.compat import uuid7

from agents.queries import Run
from engine import meters
from engine.redaction import redactor_of
from jobs import batch, queries, wakeups
from jobs.batch import ArtifactRow, Batch, EventRow, ProgressRow, SandboxRow, StepRow
from jobs.claiming import Claimed
from jobs.execution.outcomes import StepBegin, StepEnd, StoredArtifact, Used
from jobs.execution.ports import Journal, LeaseLostError
from jobs.models import Attempt, Job
from jobs.settlements import AttemptKey, Settlement
from jobs.texts import clean
from jobs.usage import UsageRow

log = logging.getLogger("engine.worker")

# Log lines wait this long for company; whoever waits for durability does not.
LINGER_SECONDS = 0.025
# Rows from which on a batch goes out at once, and at which agents are held back.
FULL_ROWS = 200
MOST_ROWS = 5_000
# Between tries while the database is away. The lease's own end stops the worker, not a count of tries.
RETRY_SECONDS = 0.25


LATEST_REPLY = timedelta(seconds=60)  # what is further back was set back


class Clock:
    """The database's clock, carried on from the last heartbeat by the monotonic one (I5)."""

    def __init__(self, database: datetime) -> None:
        self._follow(database)

    def set(self, database: datetime) -> None:
        """The database said what time it is, a moment ago: a reply that was held up must not turn the clock back."""
        if not timedelta() < self.now() - database < LATEST_REPLY:
            self._follow(database)

    def _follow(self, database: datetime) -> None:
        self._database, self._monotonic = database, time.monotonic()
        self._epoch = database.timestamp()

    def now(self) -> datetime:
        """What the database's clock shows now, within the drift of one heartbeat."""
        return self._database + timedelta(seconds=time.monotonic() - self._monotonic)

    def seconds(self) -> float:
        """`now` in seconds since 1970."""
        return self._epoch + time.monotonic() - self._monotonic


@dataclass
class _Waiter:
    key: AttemptKey
    done: asyncio.Future[str | None]  # the settled status, or None


class Writer:
    """Collects what all jobs of one worker write, and commits it in batches."""

    def __init__(
        self,
        worker_id: UUID,
        *,
        in_database: Callable[..., Awaitable[Any]],
        on_worker_lost: Callable[[], None],
    ) -> None:
        self.worker_id = worker_id
        self._in_database = in_database
        self._on_worker_lost = on_worker_lost
        self._batch = Batch()
        self._rows = 0
        self._waiters: list[_Waiter] = []
        self._refused: set[AttemptKey] = set()
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False
        self.late_writes_refused = 0
        self.unstorable: set[AttemptKey] = set()  # refused for what they wrote, though the lease holds
        self.runs: list[Run] = []  # for the agents' statistics; whoever takes them empties it

    def add(self, rows: int = 1, *, urgent: bool = False) -> Batch:
        """The batch to append to."""
        self._rows += rows
        self._wake.set()
        if urgent or self._rows >= FULL_ROWS:
            self._urgent.set()
        if self._rows >= MOST_ROWS:
            self._room.clear()
        return self._batch

    async def room(self) -> None:
        """Wait while too much is unwritten: the agent is held back instead of the worker growing."""
        await self._room.wait()

    def durable(self, key: AttemptKey) -> asyncio.Future[str | None]:
        """A future for the moment when all that was added so far is committed.

        Gives the job's new status if that was a settlement. Raises LeaseLostError if the fence refused it.
        """
        waiter = _Waiter(key, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._wake.set()
        self._urgent.set()
        return waiter.done

    def is_refused(self, key: AttemptKey) -> bool:
        """Whether this attempt has lost its lease."""
        return key in self._refused

    def forget(self, key: AttemptKey) -> None:
        """An attempt is over here; nothing more comes from it."""
        self._refused.discard(key)

    async def close(self) -> None:
        """Write what is left and end `run`."""
        self._closed = True
        self._wake.set()
        self._urgent.set()

    async def run(self) -> None:
        """Write batches until closed. One is in flight at a time, so order within a job is the order of adding."""
        try:
            await self._run()
        finally:
            self._refuse_waiters(self._waiters)

    async def _run(self) -> None:
        while not (self._closed and not self._batch and not self._waiters):
            await self._wake.wait()
            self._wake.clear()
            if not self._urgent.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        await self._urgent.wait()
            self._urgent.clear()
            taken, waiters = self._batch, self._waiters
            self._batch, self._waiters, self._rows = Batch(), [], 0
            self._room.set()
            await self._write(taken, waiters)

    async def _write(self, taken: Batch, waiters: list[_Waiter]) -> None:
        try:
            written = await self._write_until_heard(taken) if taken else batch.Written(set(), {}, set())
        except queries.WorkerLeaseLost:
            self._refuse(taken.attempts() | {waiter.key for waiter in waiters}, waiters)
            self._on_worker_lost()
            return
        except asyncio.CancelledError:
            self._refuse_waiters(waiters)
            raise
        self._refuse(written.refused, waiters)
        for waiter in waiters:
            if not waiter.done.done():
                waiter.done.set_result(written.settled.get(waiter.key))
        self.runs += _runs(taken, written)
        _meter(taken, written)
        changed = {str(key[0]) for key in taken.attempts() - written.refused}
        if changed:
            wakeups.notifier.send(wakeups.JOB_CHANNEL, changed)
        if written.queues:
            wakeups.notifier.send(wakeups.QUEUE_CHANNEL, written.queues)

    def _refuse(self, refused: set[AttemptKey], waiters: list[_Waiter]) -> None:
        self._refused |= refused
        self.late_writes_refused += len(refused)
        meters.LATE_WRITES.inc(len(refused))
        if refused:
            log.warning("Late writes of %s attempts were refused.", len(refused))
        self._refuse_waiters([waiter for waiter in waiters if waiter.key in refused])

    @staticmethod
    def _refuse_waiters(waiters: list[_Waiter]) -> None:
        for waiter in waiters:
            if not waiter.done.done():
                waiter.done.set_exception(LeaseLostError())
                waiter.done.exception()  # whoever was cancelled meanwhile does not read it

    async def _write_until_heard(self, taken: Batch) -> batch.Written:
        """A batch is repeatable, so a lost connection at commit is answered by sending it again."""
        while True:
            try:
                written: batch.Written = await self._in_database(batch.write, self.worker_id, taken)
                return written
            except queries.WorkerLeaseLost:
                raise
            except Exception as error:  # whatever one job's rows do to us, the others' must be written
                if not _may_pass(error):
                    return await self._write_one_by_one(taken, error)
                log.warning("The database is away, writing again: %s", str(error).strip())
                await asyncio.sleep(RETRY_SECONDS)

    async def _write_one_by_one(self, taken: Batch, error: Exception) -> batch.Written:
        """One job's rows cannot be stored. It loses its lease here, the others must not suffer."""
        keys = taken.attempts()
        if len(keys) == 1:
            log.error("Job %s wrote what cannot be stored: %r", next(iter(keys))[0], error)
            self.unstorable |= keys
            return batch.Written(refused=keys, settled={}, queues=set())
        parts = [await self._write_until_heard(taken.only(key)) for key in keys]
        return batch.Written(
            refused=set().union(*(part.refused for part in parts)),
            settled={key: status for part in parts for key, status in part.settled.items()},
            queues=set().union(*(part.queues for part in parts)),
        )


def _meter(taken: Batch, written: batch.Written) -> None:
    """Count what a batch wrote. Each end of an attempt tells at least one event."""
    refused = written.refused
    kept = (
        taken.events
        if not refused
        else [row for row in taken.events if (row.job_id, row.attempt) not in refused]
    )
    ended = [row for row in taken.settlements if row.key in written.settled]
    meters.EVENTS.inc(len(kept) + len(ended))
    for row in ended:
        meters.ATTEMPTS.labels(row.outcome).inc()
        meters.WAIT_SECONDS.observe(max(0.0, row.started_at - row.due_at))
        meters.RUN_SECONDS.observe(max(0.0, row.ended_at - row.started_at))
        if (status := written.settled[row.key]) in Job.FINAL:
            meters.JOBS_ENDED.labels(status).inc()


def _may_pass(error: Exception) -> bool:
    """Whether the same batch may go through later: the connection was lost, or the server is busy or stopping."""
    state = getattr(error.__cause__, "sqlstate", None) or ""
    if isinstance(error, InternalError):
        return state.startswith(
            "25"
        )  # the server ended a transaction that idled while this process was stopped
    return isinstance(error, OperationalError | InterfaceError) and not state.startswith(
        "54"
    )  # beyond its limits


def _runs(taken: Batch, written: batch.Written) -> list[Run]:
    """How runs that ended by the agent's own doing went."""
    return [
        Run(
            row.agent_id,
            row.outcome == Attempt.Outcome.COMPLETED,
            row.ended_at - row.started_at,
        )
        for row in taken.settlements
        if row.outcome in (Attempt.Outcome.COMPLETED, Attempt.Outcome.FAILED)
        and row.agent_id is not None
        and (row.job_id, row.attempt) in written.settled
    ]


_encode = json.JSONEncoder(allow_nan=False).encode


def to_json(value: Any) -> str:
    """JSON text that jsonb takes. Raises ValueError for NaN and infinities."""
    text = _encode(value)
    return text if "\\u0000" not in text and "\\ud" not in text else json.dumps(clean(value))


class AttemptRecorder:
    """Everything one attempt writes goes through here. Satisfies `execution.ports.Recorder`."""

    def __init__(self, writer: Writer, job: Claimed, clock: Clock) -> None:
        self._writer = writer
        self._job = job
        self._clock = clock
        self._seq = job.last_seq
        self._ordinal = 0  # of the journal's last entry
        self._journal: dict[str, int] = {}  # key -> ordinal, of entries that earlier attempts began
        self._begun: dict[str, tuple[int, datetime]] = {}
        self._key: AttemptKey = (job.id, job.attempt)
        self.sandbox = ""
        self.has_durable_step = False  # of this attempt
        self._redacted = redactor_of(job.input)
        self._settling: asyncio.Future[str | None] | None = None

    def event(
        self,
        type: str,
        *,
        message: str = "",
        level: str = "info",
        source: str = "system",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Number and queue one event; it is stored within some 25 ms."""
        if self._writer.is_refused(self._key):
            return
        self._seq += 1
        self._writer.add().events.append(
            EventRow(
                job_id=self._job.id,
                attempt=self._job.attempt,
                seq=self._seq,
                at=self._clock.now(),
                type=type,
                source=source,
                level=level,
                message=self._redacted(clean(message)),
                data=None if data is None else self._json(data),
            )
        )

    def continue_journal(self, journal: Journal) -> None:
        """Go on numbering where earlier attempts stopped."""
        self._journal = {step.key: number for number, step in enumerate(journal.steps, start=1)}
        self._ordinal = len(self._journal)

    async def ready(self) -> None:
        """Wait while too much is unwritten. Raises LeaseLostError."""
        await self._writer.room()
        self._check()

    async def flush(self) -> None:
        """Return when everything so far is durable. Raises LeaseLostError."""
        self._check()
        await self._writer.durable(self._key)

    def _check(self) -> None:
        if self._writer.is_refused(self._key):
            raise LeaseLostError

    def _json(self, data: Any) -> str:
        text = to_json(data)
        return text if self._redacted(text) == text else to_json(self._redacted.inside(data))

    def progress(self, fraction: float | None, message: str) -> None:
        """The latest progress; earlier ones that were not written yet are passed over."""
        if not self._writer.is_refused(self._key):
            rows = self._writer.add().progress
            rows[self._key] = ProgressRow(
                self._job.id, self._job.attempt, fraction, self._redacted(clean(message))
            )

    def opened(self, sandbox: str) -> None:
        """Note which sandbox this attempt runs in, so that a successor can kill it."""
        self.sandbox = sandbox
        row = SandboxRow(self._job.id, self._job.attempt, sandbox, self._job.started_at)
        self._writer.add().sandboxes.append(row)

    async def begin_step(self, step: StepBegin) -> None:
        """The step has begun: durable on return. Raises LeaseLostError."""
        self._check()
        if step.key not in self._journal:
            self._ordinal += 1
        self._begun[step.key] = (self._journal.get(step.key, self._ordinal), self._clock.now())
        self._add_step(step)
        if step.kind == "step":
            self.event("step.started", message=step.key, data={"key": step.key, "once": step.once})
        await self._writer.durable(self._key)

    async def end_step(self, step: StepEnd) -> None:
        """The step has ended, with its result and the files it changed: durable on return. Raises LeaseLostError."""
        self._check()
        self._add_step(step.begin, step)
        self._progressed()
        if step.begin.kind == "step":
            self.event("step.completed", message=step.begin.key, data={"key": step.begin.key})
        await self._writer.durable(self._key)

    async def record(self, step: StepEnd, *, used: Used | None = None, model: str = "") -> None:
        """An entry that begins and ends at once, with what it used: durable on return. Raises LeaseLostError."""
        self._check()
        key = step.begin.key
        if key not in self._journal:
            self._ordinal += 1
        self._begun[key] = (self._journal.get(key, self._ordinal), self._clock.now())
        self._add_step(step.begin, step)
        self._progressed()
        if used is not None:
            row = UsageRow(self._job.id, self._job.attempt, key, model, used)
            self._writer.add().usages.append(row)
        if step.begin.kind == "step":
            self.event("step.completed", message=key, data={"key": key})
        await self._writer.durable(self._key)

    def _progressed(self) -> None:
        """An entry becomes durable: the row of losses ends."""
        if self._job.lost_count and not self.has_durable_step:
            self._writer.add(0).durable_steps.add(self._key)
        self.has_durable_step = True

    def _add_step(self, step: StepBegin, end: StepEnd | None = None) -> None:
        fallback = (self._journal.get(step.key, self._ordinal), self._clock.now())
        ordinal, begun_at = self._begun.get(step.key, fallback)
        self._writer.add().steps.append(
            StepRow(
                job_id=self._job.id,
                attempt=self._job.attempt,
                key=step.key,
                ordinal=ordinal,
                kind=step.kind,
                signature=step.signature,
                once=step.once,
                begun_at=begun_at,
                ended_at=self._clock.now() if end else None,
                result=to_json(end.result) if end else None,
                files=to_json([file.as_json() for file in end.files]) if end else "[]",
                deleted=to_json(list(end.deleted)) if end else "[]",
            )
        )

    async def add_artifact(self, artifact: StoredArtifact) -> None:
        """A file whose bytes are stored becomes an artifact of the job: durable on return. Raises LeaseLostError."""
        self._check()
        row = ArtifactRow(
            id=uuid7(),
            job_id=self._job.id,
            attempt=self._job.attempt,
            project_id=self._job.project_id,
            name=clean(artifact.name),
            media_type=artifact.media_type,
            size=artifact.size,
            sha256=artifact.sha256,
            storage_key=artifact.storage_key,
        )
        self._writer.add().artifacts.append(row)
        self.event(
            "artifact.created",
            message=row.name,
            data={"name": row.name, "media_type": row.media_type, "size": row.size, "sha256": row.sha256},
        )
        await self._writer.durable(self._key)

    @property
    def next_seq(self) -> int:
        """The number that the next event takes."""
        return self._seq + 1

    async def settle(self, settlement: Settlement) -> str | None:
        """Write how the attempt ended; gives the job's new status. Raises LeaseLostError.

        The first settlement counts: one that comes while it is on its way, because the worker stops, is dropped.
        """
        self._check()
        if self._settling is None:
            self._writer.add(urgent=True).settlements.append(settlement)
            self._settling = self._writer.durable(self._key)
        return await asyncio.shield(self._settling)
