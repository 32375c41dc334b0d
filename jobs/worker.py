"""The worker: claims jobs, keeps their lease, runs them side by side, settles them, and stops cleanly.

One `Worker` is one process. One `Incarnation` is one lease: its id is fresh, and when the lease is lost everything it
runs is stopped and a new incarnation begins. All waiting is on one event loop; database calls go through a small
thread pool; the heartbeat has a thread and a connection of its own, which jobs cannot starve.
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection

from engine import __version__, tracing
from engine.logs import log_fields
from jobs import aliveness, claiming, loading, queries, services, wakeups
from jobs.claiming import Claimed
from jobs.execution import attempt, outcomes
from jobs.execution.outcomes import Outcome
from jobs.execution.ports import AgentSpec, AttemptControl, LeaseLostError
from jobs.listening import Hint, hints
from jobs.metering import totals
from jobs.models import Attempt
from jobs.notifying.courier import Courier
from jobs.platform import JobPlatform
from jobs.queries import WorkerLeaseLost
from jobs.recorder import AttemptRecorder, Clock, Writer
from jobs.sandboxes.base import Provider, ProviderHealth
from jobs.settlements import AttemptKey, Settlement
from jobs.settling import settlement
from jobs.upkeep import Upkeep

log = logging.getLogger("engine.worker")

POLL_SECONDS = 1.0  # wake-ups are hints (I7)
PROBE_SECONDS = 15.0  # between looks whether a sandbox can be had by now
TICK_SECONDS = 0.5
LOOK_SECONDS = 0.05  # at least so long between surveys of the queues, however many hints come
MOST_CLAIMED = 400  # a call: claiming the next ones overlaps with writing how the last ones ended
RECONNECT_SECONDS = 1.0
DATABASE_THREADS = 4
PATIENCE_SECONDS = (
    30.0  # with one call; lock_timeout and connect_timeout end all that the database knows of before
)
ALL_QUEUES = "*"
# A suspect (lost twice) waits at most this long for an idle worker; then one stops taking other jobs until it is idle.
# Each draws its own time, so that seldom two do, and does so for a part of the time only: a long job would hold up all.
SUSPECT_PATIENCE_SECONDS = 5.0
HOLD_SECONDS, HOLD_EVERY_SECONDS = 30.0, 120.0


@dataclass(frozen=True)
class Options:
    """What the operator set."""

    concurrency: int = 8
    queues: tuple[str, ...] = (ALL_QUEUES,)
    grace_seconds: float = 8.0  # from SIGTERM to handing back what still runs
    listen: bool = True  # off: polling alone


@dataclass(eq=False)
class Running:
    """One job in progress here."""

    job: Claimed
    agent: AgentSpec
    recorder: AttemptRecorder
    control: AttemptControl
    task: asyncio.Task[None] | None = None
    overdue: bool = False  # its deadline passed while it ran
    span: tracing.Span = tracing.NO_SPAN

    @property
    def key(self) -> AttemptKey:
        """Its fence."""
        return (self.job.id, self.job.attempt)


@dataclass
class Beats:
    """What the heartbeat thread and the event loop tell each other."""

    renewed_at: float = field(default_factory=time.monotonic)  # when the last successful renewal was sent
    loop_ticked_at: float = field(default_factory=time.monotonic)


class Worker:
    """A worker process: one incarnation after another until it is told to stop."""

    def __init__(self, provider: Provider, options: Options) -> None:
        self.provider = provider
        self.options = options
        self._incarnation: Incarnation | None = None
        self._stopping = False

    async def run(self) -> None:
        """Work until `stop` is called and the jobs at hand are finished or handed back."""
        health = await self.provider.start()
        try:
            while not self._stopping:
                self._incarnation = Incarnation(self.provider, self.options, health)
                await self._incarnation.run()
                health = self._incarnation.health
        finally:
            await self.provider.close()
            aliveness.stopped()

    def stop(self) -> None:
        """Drain; called again: hand everything back now."""
        again, self._stopping = self._stopping, True
        aliveness.stopping()
        if self._incarnation is not None:
            self._incarnation.drain(now=again)


class Incarnation:
    """One worker id and its lease."""

    def __init__(self, provider: Provider, options: Options, health: ProviderHealth) -> None:
        self.id = uuid4()
        self.provider = provider
        self.options = options
        self.health = health
        self.running: dict[AttemptKey, Running] = {}
        self._beats = Beats()
        self._beat_now = threading.Event()
        self._stop_beating = threading.Event()
        self._held_unknown: set[AttemptKey] = set()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(DATABASE_THREADS, thread_name_prefix="database")
        self._look = asyncio.Event()  # there may be something to claim
        self._drain_started = asyncio.Event()
        self._drain_now = asyncio.Event()
        self._draining = False
        self._lost = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._alone = False  # runs one suspect and nothing else
        self._hold_from: float | None = None  # no other jobs from then on, for the sake of a suspect
        self._queues: dict[str, claiming.Survey] = {}
        self._suspects: set[str] = set()
        self._looked_at = 0.0
        self._look_took = 0.0
        self._hinted_since = True
        self._courier = Courier(self._in_database)

    # --- life ---

    async def run(self) -> None:
        """From registering to goodbye, or to the loss of the lease."""
        self._loop = asyncio.get_running_loop()
        if await self._register():
            with log_fields(worker=self.id):  # the tasks begun inside keep it
                await self._work()

    async def _work(self) -> None:
        self.writer = Writer(self.id, in_database=self._in_database, on_worker_lost=self._lease_is_lost)
        in_context = contextvars.copy_context().run  # its lines name the worker, too
        beat = threading.Thread(target=in_context, args=(self._beat,), name="heartbeat", daemon=True)
        beat.start()
        self._beat_now.set()
        writing = asyncio.create_task(self.writer.run())
        writing.add_done_callback(self._writing_ended)
        ticking = asyncio.create_task(self._steadily(self._tick))
        self._claiming = asyncio.create_task(self._steadily(self._claim))
        upkeep = Upkeep(self._in_database, self.provider, self.writer, look=self._look.set)
        loops = (*upkeep.loops, self._listen, self._probe, self._courier.run)
        helpers = [self._claiming, *(asyncio.create_task(self._steadily(loop)) for loop in loops)]
        log.info("Worker %s serves queues %s with %s slots.", self.id, *self._about())
        aliveness.ready(f"Serves queues {','.join(self.options.queues)}")
        try:
            await self._until_drained_or_lost()
        finally:
            await _cancel(*helpers)
            await self.writer.close()
            await _first(self._lost, writing)
            await _cancel(ticking, writing)
            self._stop_beating.set()
            self._beat_now.set()
            await asyncio.to_thread(beat.join, settings.ENGINE_HEARTBEAT_SECONDS)
            if not self._lost.is_set():
                with contextlib.suppress(DatabaseError, InterfaceError):
                    await self._in_database(queries.stop_worker, self.id)
                    await self._in_database(totals.tell, "worker")
            self._pool.shutdown(wait=False)

    async def _steadily(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin a loop of the worker again after a fault: one that only looked alive would hold its jobs for ever."""
        while True:
            try:
                await work()
                return
            except (
                Exception
            ):  # the outer loop: a fault of ours that nobody foresaw is seen, and stops nothing else
                log.exception("A part of the worker met a fault of the platform, and begins again.")
                await asyncio.sleep(RECONNECT_SECONDS)

    def _writing_ended(self, writing: asyncio.Task[None]) -> None:
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.error("Writing met a fault of the platform.", exc_info=error)
            self._lease_is_lost()

    def _about(self) -> tuple[str, int]:
        return ",".join(self.options.queues), self.options.concurrency

    def _info(self) -> queries.WorkerInfo:
        return queries.WorkerInfo(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            queues=list(self.options.queues),
            slots=self.options.concurrency,
            health=self._sandbox_health(),
        )

    async def _in_database(
        self,
        function: Callable[..., Any],
        *args: Any,
        patience: float | None = PATIENCE_SECONDS,
        **kwargs: Any,
    ) -> Any:
        """Run a database function off the event loop. One that never comes back costs the lease."""

        def call() -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                connection.close_if_unusable_or_obsolete()

        # In this task's context: what is logged in the thread names its job.
        calling = self._loop.run_in_executor(self._pool, contextvars.copy_context().run, call)
        try:
            done, _ = await asyncio.wait([calling], timeout=patience)
        except asyncio.CancelledError:
            calling.cancel()
            raise
        if not done:
            # Half-open: a peer that takes what is sent and never answers. The thread stays with it.
            calling.add_done_callback(lambda late: late.cancelled() or late.exception())
            self._lease_is_lost()
            raise OperationalError("The database took a call and does not answer.")
        return calling.result()

    async def _register(self) -> bool:
        """Get a lease; False when told to stop while the database was away."""
        while not self._drain_started.is_set():
            sent = time.monotonic()
            self.id = uuid4()  # a try whose reply was lost may have left its row
            try:
                await self._in_database(queries.register_worker, self._info())
                self._clock = Clock(await self._in_database(services.database_time))
            except (DatabaseError, InterfaceError) as error:
                log.warning("The database does not answer, trying again: %s", str(error).strip())
                await _first(self._drain_started, seconds=RECONNECT_SECONDS)
            else:
                self._beats = Beats(renewed_at=sent)
                self.provider.tick(settings.ENGINE_LEASE_SECONDS * 2 / 3)
                return True
        return False

    # --- lease ---

    def _beat(self) -> None:
        """The heartbeat thread: renew the lease while the event loop lives."""
        lease, interval = settings.ENGINE_LEASE_SECONDS, settings.ENGINE_HEARTBEAT_SECONDS
        while not self._stop_beating.is_set():
            self._beat_now.clear()
            if time.monotonic() - self._beats.loop_ticked_at > lease / 3:
                log.error("The worker's event loop hangs: its lease is not renewed.")
            else:
                self._beat_once()
                aliveness.alive(self._state())
            self._beat_now.wait(interval if self._beat_went_well else min(interval, RECONNECT_SECONDS))
        connection.close()

    _beat_went_well = True

    def _beat_once(self) -> None:
        sent = time.monotonic()
        try:
            beat = queries.heartbeat(
                self.id,
                running=len(self.running),
                can_run=self.health.ok and not self._draining,
                health=self._health(),
            )
        except WorkerLeaseLost:
            self._call_soon(self._lease_is_lost)
            return
        except (DatabaseError, InterfaceError) as error:
            self._beat_went_well = False
            log.warning("A heartbeat did not reach the database: %s", str(error).strip())
            connection.close()
            return
        self._beat_went_well = True
        self._beats.renewed_at = sent
        self._call_soon(self._heard, beat, sent)

    def _call_soon(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            self._loop.call_soon_threadsafe(function, *args)

    def _state(self) -> dict[str, Any]:
        return {
            "worker": str(self.id),
            "pid": os.getpid(),
            "lease_held": not self._lost.is_set() and self._beat_went_well,
            "can_run": self.health.ok and not self._draining,
            "running": len(self.running),
            "slots": self.options.concurrency,
        }

    def _health(self) -> dict[str, Any]:
        return self._sandbox_health() | {
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "cpu_seconds": round(time.process_time(), 1),
            "late_writes_refused": self.writer.late_writes_refused,
            "warm_sandboxes": self.provider.warm,
        }

    def _sandbox_health(self) -> dict[str, Any]:
        return {
            "sandbox": {
                "ok": self.health.ok,
                "name": self.health.name,
                "detail": self.health.detail,
                "remedy": self.health.remedy,
            }
        }

    def _heard(self, beat: queries.Beat, sent: float) -> None:
        """On the loop, after a renewal: trust it for 2/3 of the lease from when it was sent."""
        self._clock.set(beat.database_time)
        self.provider.tick(settings.ENGINE_LEASE_SECONDS * 2 / 3 - (time.monotonic() - sent))
        for key, cancel in beat.held.items():
            if cancel and key in self.running:
                self.running[key].control.cancel.set()
        unknown = beat.held.keys() - self.running.keys()
        # Seen twice: a claim whose reply is still on its way is known by the second beat, a lost one is not.
        for key in unknown & self._held_unknown:
            task = self._loop.create_task(self._give_back_unknown(key))
            self._giving_back.add(task)  # the loop itself keeps tasks by weak references
            task.add_done_callback(self._giving_back.discard)
        self._held_unknown = unknown
        if beat.drain:
            self.drain()

    async def _give_back_unknown(self, key: AttemptKey) -> None:
        """A claim whose reply was lost: nothing ran, so the job goes back as it was. Or what it wrote was refused."""
        claimed = await self._in_database(loading.claimed_again, self.id, *key)
        if claimed is not None and key not in self.running:
            job, agent = claimed
            entry = Running(job, agent, self._recorder(job), AttemptControl())
            await self._settle(entry, self._why_unknown(key))

    def _why_unknown(self, key: AttemptKey) -> Outcome:
        if key not in self.writer.unstorable:
            return outcomes.HandedBack("its claim was lost")
        message = "What the job wrote could not be stored."
        return outcomes.Failed("platform_error", message, remedy="See the worker's log for the reason.")

    async def _tick(self) -> None:
        """Show the heartbeat that the loop lives, and stop in time when the lease cannot be renewed."""
        while True:
            now = self._beats.loop_ticked_at = time.monotonic()
            if now - self._beats.renewed_at > settings.ENGINE_LEASE_SECONDS * 2 / 3:
                log.error(
                    "The lease could not be renewed in time: everything here stops before others take over."
                )
                self._lease_is_lost()
            await asyncio.sleep(TICK_SECONDS)

    def _lease_is_lost(self) -> None:
        if not self._lost.is_set():
            log.error("Worker %s has lost its lease and starts again under a new id.", self.id)
            self._lost.set()

    # --- claiming ---

    async def _claim(self) -> None:
        """Take jobs whenever a slot is free; woken by hints, and each second in any case."""
        while not (self._draining or self._lost.is_set()):
            self._look.clear()
            try:
                await self._fill_slots()
            except WorkerLeaseLost:
                self._lease_is_lost()
                return
            except (DatabaseError, InterfaceError) as error:
                log.warning("Claiming waits for the database: %s", str(error).strip())
            # Not wait_for: on Python 3.11 it loses a cancel that comes together with the event (cpython#86296).
            await _first(self._look, self._lost, seconds=POLL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def _fill_slots(self) -> None:
        if not self.health.ok or self._alone:
            return
        await self._look_around()
        if await self._take_suspect():
            return
        took = True
        while took and not self._draining:
            took = False
            for queue, seen in self._shuffled():
                free = self.options.concurrency - len(self.running)
                if free <= 0:
                    return
                took = await self._take(queue, min(free, MOST_CLAIMED), seen=seen) or took

    async def _look_around(self) -> None:
        """Survey the queues when a hint came or the last look is old; never more than a fifth of the time."""
        age = time.monotonic() - self._looked_at
        due = max(LOOK_SECONDS, 5 * self._look_took) if self._hinted_since else POLL_SECONDS * 0.75
        if age < due:
            if self._hinted_since:
                self._loop.call_later(due - age, self._look.set)
            return
        self._hinted_since = False
        self._looked_at = time.monotonic()
        named = None if ALL_QUEUES in self.options.queues else self.options.queues
        self._queues, self._suspects = await self._in_database(claiming.survey_all, named)
        self._look_took = time.monotonic() - self._looked_at

    def _shuffled(self) -> list[tuple[str, claiming.Survey]]:
        """The queues in another order each time, so that none is always last."""
        return random.sample(list(self._queues.items()), len(self._queues))

    async def _take(self, queue: str, most: int, *, seen: claiming.Survey, suspects: bool = False) -> bool:
        """Claim up to `most` jobs and begin them; whether there were any."""
        claimed = await self._in_database(
            loading.claim, self.id, queue=queue, limit=most, seen=seen, suspects=suspects
        )
        entries = [Running(job, agent, self._recorder(job), AttemptControl()) for job, agent in claimed]
        self.running |= {entry.key: entry for entry in entries}
        if entries:
            self._idle.clear()
        at_once: list[Running] = []
        for entry in entries:
            if _does_nothing(entry.agent) and not entry.job.input:
                at_once.append(entry)
            else:
                entry.task = self._loop.create_task(self._run_job(entry))
        if at_once:
            self._end_at_once(at_once)
        return bool(entries)

    async def _take_suspect(self) -> bool:
        """Whether this worker is, or is about to be, kept for a job that was lost twice."""
        if not self._suspects:
            self._hold_from = None
            return False
        if self._hold_from is None:
            self._hold_from = time.monotonic() + random.uniform(0, SUSPECT_PATIENCE_SECONDS)  # noqa: S311
        if self.running:
            held = time.monotonic() - self._hold_from
            return held > 0 and held % HOLD_EVERY_SECONDS < HOLD_SECONDS
        for queue in self._suspects:
            self._alone = await self._take(queue, 1, seen=self._queues[queue], suspects=True)
            if self._alone:
                return True
        return False

    # --- running ---

    def _recorder(self, job: Claimed) -> AttemptRecorder:
        return AttemptRecorder(self.writer, job, self._clock)

    def _end_at_once(self, entries: list[Running]) -> None:
        """No-op agents end where they begin: they measure the queue, not a sandbox."""
        settlements = []
        for entry in entries:
            with self._span(entry) as entry.span:
                settlements.append(self._settlement(entry, outcomes.Completed({})))
        self.writer.add(len(settlements), urgent=True).settlements.extend(settlements)
        written = self.writer.durable(entries[0].key)

        def finished(future: asyncio.Future[str | None]) -> None:
            if not future.cancelled():
                future.exception()  # a refused one is its next holder's to tell
            self._finished(*(entry.key for entry in entries))

        written.add_done_callback(finished)

    async def _run_job(self, entry: Running) -> None:
        """Run and settle one job; each line logged meanwhile names it."""
        with log_fields(job=entry.job.id, attempt=entry.job.attempt), self._span(entry) as entry.span:
            if not _does_nothing(entry.agent):
                log.info(
                    "The attempt begins, with version %s of agent %s.", entry.agent.number, entry.agent.slug
                )
            await self._run_and_settle(entry)

    def _span(self, entry: Running) -> tracing.Span:
        """One attempt's, in the trace of its job: those of all attempts stand side by side."""
        if not tracing.is_on():
            return tracing.NO_SPAN
        job = entry.job
        about: tracing.Attributes = {
            "engine.job.id": str(job.id),
            "engine.attempt": job.attempt,
            "engine.agent.slug": entry.agent.slug,
            "engine.agent.version": entry.agent.number,
            "engine.agent.kind": entry.agent.kind,
            "engine.queue": job.queue,
            "engine.worker.id": str(self.id),
            "engine.wait_seconds": max(0.0, job.started_at - job.due_at) if job.attempt == 1 else None,
        }
        return tracing.span("attempt", about, kind="consumer", parent=job.traceparent)

    async def _run_and_settle(self, entry: Running) -> None:
        job, key = entry.job, entry.key
        timer = self._deadline_timer(entry)
        try:
            await self._settle(entry, self._judged(entry, await self._outcome(entry)))
        except LeaseLostError:
            log.warning("Job %s attempt %s lost its lease; its late write was refused.", *key)
        except asyncio.CancelledError:
            if not self._lost.is_set():
                await self._settle(entry, outcomes.HandedBack("the worker stopped"))
        except (DatabaseError, InterfaceError) as error:
            log.warning("Job %s could not be loaded, it goes back: %s", job.id, str(error).strip())
            await self._settle(entry, outcomes.HandedBack("the database did not answer"))
        except Exception as error:  # the outer loop: one job's fault in our code must not stop the worker
            log.exception("Job %s met a fault of the platform.", job.id)
            message = f"Engine itself failed: {type(error).__name__}."
            failed = outcomes.Failed(
                "platform_error", message, remedy="See the worker's log for the traceback."
            )
            await self._settle(entry, failed)
        finally:
            if timer is not None:
                timer.cancel()
            self._finished(key)

    async def _outcome(self, entry: Running) -> Outcome:
        if _does_nothing(entry.agent):
            await asyncio.sleep(float(entry.job.input.get("seconds", 0)))
            return outcomes.Completed({})
        details = await self._in_database(loading.details, entry.job, entry.agent)
        entry.recorder.continue_journal(details.journal)
        platform = JobPlatform(entry.job.id, self._in_database)
        return await attempt.run_attempt(details, entry.recorder, self.provider, entry.control, platform)

    def _deadline_timer(self, entry: Running) -> asyncio.TimerHandle | None:
        """A running job's deadline is its lease holder's to enforce."""
        if entry.job.deadline_at is None:
            return None

        def overdue() -> None:
            entry.overdue = True
            entry.control.cancel.set()

        return self._loop.call_later((entry.job.deadline_at - self._clock.now()).total_seconds(), overdue)

    def _judged(self, entry: Running, outcome: Outcome) -> Outcome:
        if entry.overdue and isinstance(outcome, outcomes.Cancelled):
            message = "The job's deadline passed while it ran."
            return outcomes.Failed(
                "deadline", message, remedy="Submit it with a later deadline.", retryable=False
            )
        if isinstance(outcome, outcomes.Unavailable):
            self.health = ProviderHealth(False, self.provider.name, outcome.reason, outcome.remedy)
            self._beat_now.set()
        return outcome

    async def _settle(self, entry: Running, outcome: Outcome) -> None:
        if isinstance(outcome, outcomes.LeaseLost):
            entry.span.failed("lease_lost")
            return
        with contextlib.suppress(LeaseLostError):
            row = self._settlement(entry, outcome)
            status = await asyncio.shield(entry.recorder.settle(row))
            if not _does_nothing(entry.agent):
                log.info("The attempt has ended (%s): the job is %s.", type(outcome).__name__, status)

    def _settlement(self, entry: Running, outcome: Outcome) -> Settlement:
        row = settlement(outcome, entry.job, entry.agent, recorder=entry.recorder, clock=self._clock)
        entry.span.note({"engine.attempt.outcome": str(row.outcome), "engine.job.status": str(row.status)})
        if row.outcome in (Attempt.Outcome.FAILED, Attempt.Outcome.LOST):
            entry.span.failed((row.error or {}).get("code") or row.reason)
        return row

    def _finished(self, *keys: AttemptKey) -> None:
        for key in keys:
            self.running.pop(key, None)
            self.writer.forget(key)
        if not self.running:
            self._alone = False
            self._idle.set()
        self._look.set()

    # --- what wakes it ---

    async def _probe(self) -> None:
        """Look again, now and then, whether a sandbox can be had; until then no job is taken and no attempt used."""
        while True:
            if not self.health.ok:
                log.error("No jobs are taken: %s. To fix it: %s", self.health.detail, self.health.remedy)
                await asyncio.sleep(PROBE_SECONDS)
                self.health = await self.provider.start()
                self._beat_now.set()
                self._look.set()
            else:
                await asyncio.sleep(TICK_SECONDS)

    async def _listen(self) -> None:
        """Hear hints of new jobs and of cancels on a connection of its own; polling finds what they miss."""
        if not self.options.listen:
            return
        async for hint in hints(wakeups.QUEUE_CHANNEL, wakeups.CANCEL_CHANNEL):
            if hint is None:
                self._look.set()  # what came before is found by looking
            else:
                self._hinted(hint)

    def _hinted(self, hint: Hint) -> None:
        if hint.channel == wakeups.QUEUE_CHANNEL:
            self._hinted_since = True
            self._look.set()
            return
        wanted = set(hint.payload.split(","))
        for (job_id, _), entry in self.running.items():
            if str(job_id) in wanted:
                entry.control.cancel.set()

    # --- stopping ---

    def drain(self, *, now: bool = False) -> None:
        """Take no more jobs; short ones finish, the rest go back. `now`: all go back at once."""
        if not self._draining:
            with log_fields(worker=self.id):  # a signal's handler runs outside our tasks
                log.info(
                    "Draining: %s jobs are finishing or go back within %s s.",
                    len(self.running),
                    self.options.grace_seconds,
                )
        self._draining = True
        self._look.set()
        self._beat_now.set()
        self._drain_started.set()
        if now:
            self._drain_now.set()

    async def _until_drained_or_lost(self) -> None:
        await _first(self._drain_started, self._lost)
        if not self._lost.is_set():
            # A claim may be on its way: what it brings would otherwise be left to the sweep, as lost.
            await _first(self._claiming, self._lost, self._drain_now, seconds=self.options.grace_seconds / 2)
            await _first(self._idle, self._lost, self._drain_now, seconds=self.options.grace_seconds / 2)
            for entry in self.running.values():
                entry.control.hand_back.set()
            await _first(self._idle, self._lost, self._drain_now, seconds=self.options.grace_seconds / 2)
        stopping = asyncio.create_task(self._stop_all())
        await _first(stopping, self._lost)
        if (
            not stopping.done()
        ):  # the lease ended while jobs were handed back: nobody waits for the database now
            await _cancel(stopping)
            await self._stop_all()

    async def _stop_all(self) -> None:
        """Stop what runs; each job is handed back by its own task, unless the lease is lost."""
        for entry in list(self.running.values()):
            if self._lost.is_set():
                entry.control.lease_lost.set()
        tasks = [entry.task for entry in self.running.values() if entry.task is not None]
        await _cancel(*tasks)


def _does_nothing(agent: AgentSpec) -> bool:
    """Whether it is a benchmark's agent, here where they may run."""
    return agent.kind == "noop" and settings.ENGINE_BENCHMARK


async def _first(*happenings: asyncio.Event | asyncio.Task[None], seconds: float | None = None) -> None:
    """Wait for whichever comes first; tasks among them go on."""
    tasks = [item for item in happenings if isinstance(item, asyncio.Task)]
    waits = [asyncio.create_task(item.wait()) for item in happenings if isinstance(item, asyncio.Event)]
    await asyncio.wait([*tasks, *waits], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    await _cancel(*waits)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
