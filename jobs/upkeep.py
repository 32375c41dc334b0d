"""What any worker does for all: sweep after lost workers, what is due by the clock, totals, and what is old."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from agents.queries import record_runs
from apikeys import services as keys
from apikeys.queries import forget_audit
from engine import meters
from jobs import buckets, failpoints, queries, retention, services, wakeups
from jobs.metering import totals
from jobs.recorder import Writer
from jobs.sandboxes.base import Provider
from jobs.storage import StorageFailed

log = logging.getLogger("engine.worker")

SWEEP_SECONDS = 2.0
RETENTION_SECONDS = 3600.0

InDatabase = Callable[..., Awaitable[Any]]


class Upkeep:
    """Each worker's share of it. `in_database` runs a function off the event loop; `look` says there may be a job."""

    def __init__(
        self, in_database: InDatabase, provider: Provider, writer: Writer, *, look: Callable[[], None]
    ) -> None:
        self._in_database = in_database
        self._provider = provider
        self._writer = writer
        self._look = look

    @property
    def loops(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What is to run until cancelled, side by side."""
        return (self._maintain, self._forget, self._report)

    async def _maintain(self) -> None:
        """Sweep, promote, expire; each minute old counters; each hour partitions."""
        hour, minute = 0.0, time.monotonic()
        while True:
            try:
                await self._sweep()
                await self._on_time()
                await self._note_runs()
                if time.monotonic() >= minute:
                    await self._in_database(keys.sweep)
                    await self._in_database(buckets.fold)
                    await self._in_database(buckets.fold_hours)
                    await self._in_database(totals.fold)
                    minute = time.monotonic() + 60
                if time.monotonic() >= hour:
                    await self._in_database(queries.ensure_partitions)
                    hour = time.monotonic() + 3600
            except (DatabaseError, InterfaceError) as error:
                log.warning("Upkeep waits for the database: %s", str(error).strip())
            await asyncio.sleep(SWEEP_SECONDS / 2 * random.uniform(0.8, 1.2))  # noqa: S311

    async def _report(self) -> None:
        """Tell what this process has counted."""
        while True:
            await asyncio.sleep(totals.REPORT_SECONDS)
            await self._in_database(totals.tell, "worker")

    async def _forget(self) -> None:
        """Delete old jobs and audit rows, each hour; apart from `_maintain`: it may take long, and nothing waits."""
        while settings.ENGINE_RETENTION_DAYS or settings.ENGINE_AUDIT_DAYS:
            try:
                if settings.ENGINE_RETENTION_DAYS:
                    await self._in_database(retention.prune, settings.ENGINE_RETENTION_DAYS, patience=None)
                if settings.ENGINE_AUDIT_DAYS:
                    await self._in_database(forget_audit, settings.ENGINE_AUDIT_DAYS, patience=None)
            except (DatabaseError, InterfaceError, StorageFailed) as error:
                log.warning("Old rows are deleted another time: %s", str(error).strip())
            await asyncio.sleep(RETENTION_SECONDS)

    async def _sweep(self) -> None:
        swept: queries.Swept = await self._in_database(queries.sweep)
        meters.SWEEPS.inc()
        meters.SWEPT_JOBS.labels("queued").inc(len(swept.requeued))
        meters.SWEPT_JOBS.labels("ended").inc(len(swept.ended))
        if swept.requeued or swept.ended:
            log.warning("Swept %s jobs of lost workers.", len(swept.requeued) + len(swept.ended))
            wakeups.notifier.send(wakeups.JOB_CHANNEL, map(str, swept.requeued + swept.ended))
            wakeups.notifier.send(wakeups.QUEUE_CHANNEL, swept.queues)
            self._look()
        for sandbox in swept.sandboxes:
            provider, _, ref = sandbox.partition(":")
            if provider == self._provider.name:
                failpoints.hit("sandbox.before_kill")
                await self._provider.kill(ref)

    async def _note_runs(self) -> None:
        """Agents' statistics, apart from the batches: workers that end jobs of one agent would wait for each other."""
        runs, self._writer.runs = self._writer.runs, []
        if runs:
            await self._in_database(record_runs, runs)

    async def _on_time(self) -> None:
        filled = await self._in_database(queries.promote)
        if filled:
            wakeups.notifier.send(wakeups.QUEUE_CHANNEL, filled)
            self._look()
        failed = await self._in_database(queries.fail_overdue)
        if failed:
            wakeups.notifier.send(wakeups.JOB_CHANNEL, map(str, failed))
        for job_id, question_id in await self._in_database(queries.due_questions):
            await self._in_database(services.expire_question, job_id, question_id)
        for job_id, question_id in await self._in_database(queries.due_reminders):
            await self._in_database(services.remind, job_id, question_id)
