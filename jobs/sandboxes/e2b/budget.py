"""How many sandboxes all workers together may have, and how fast they may make them: rows of PostgreSQL.

A slot is taken before a sandbox is created and given back once it is certainly gone; the slot of a dead worker runs out
when E2B ends its sandbox. So the count of slots is never below the count of sandboxes, over any number of processes.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

from django.db import DatabaseError, InterfaceError, connection, transaction

from jobs.sandboxes.base import SandboxBusy

T = TypeVar("T")

SLOT_SECONDS = 330.0  # E2B's own life of a sandbox, and a little more
PATIENCE_SECONDS = 60.0  # a job waits so long for a slot, then it goes back to the queue
LONGEST_PAUSE = 2.0  # between two looks
COOL_SECONDS = 3.0  # nobody creates for so long after E2B said that it is too much
SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class Found:
    """A sandbox that E2B lists as this installation's."""

    ref: str
    job_id: UUID | None
    attempt: int
    paused: bool


class Budget(Protocol):
    """What the provider asks of it. Raises SandboxBusy where nothing can be had now."""

    async def installation(self) -> str:
        """What this installation marks its sandboxes with."""

    async def take(self, job_id: UUID, attempt: int) -> UUID:
        """A slot and a turn to create; waits for them a while."""

    async def note(self, slot: UUID, ref: str) -> None:
        """Which sandbox the slot stands for."""

    async def renew(self, slots: Sequence[UUID]) -> None:
        """These sandboxes live on."""

    async def park(self, slot: UUID) -> None:
        """Its sandbox sleeps, and does not count until somebody wakes it."""

    async def release(self, *, slot: UUID | None = None, ref: str = "") -> None:
        """The sandbox is gone."""

    async def cool_down(self) -> None:
        """E2B refused for too many requests: nobody asks for a while."""

    async def is_turn_to_sweep(self) -> bool:
        """True for one worker each minute."""

    async def orphans(self, found: Sequence[Found]) -> set[str]:
        """Those that no job has any use for."""

    async def close(self) -> None:
        """Let go of the database."""


class PostgresBudget:
    """The budget that all workers on one database share."""

    def __init__(self, provider: str, *, most: int, per_second: float) -> None:
        self.provider, self.most, self.per_second = provider, most, per_second
        # One thread, so one connection beside the worker's own.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox-budget")

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        def work() -> T:
            try:
                return function(*arguments)
            finally:
                connection.close_if_unusable_or_obsolete()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        except (DatabaseError, InterfaceError) as error:
            raise SandboxBusy(f"the database did not answer: {str(error).strip()}") from error

    async def installation(self) -> str:
        """Made once for a database."""
        return str(await self._call(self._installation))

    async def take(self, job_id: UUID, attempt: int) -> UUID:
        """Wait for a slot and a turn."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        slot = uuid4()
        taking = None
        try:
            while True:
                taking = asyncio.ensure_future(self._call(self._take, slot, job_id, attempt))
                wait = await asyncio.shield(taking)
                if wait is None:
                    return slot
                if loop.time() + wait > deadline:
                    raise SandboxBusy(
                        f"all {self.most} sandboxes of ENGINE_E2B_SANDBOXES are in use, or too many begin at once"
                    )
                await asyncio.sleep(min(wait, LONGEST_PAUSE) * random.uniform(1, 1.25))  # noqa: S311
        except asyncio.CancelledError:
            if taking is not None and await taking is None:
                await self.release(slot=slot)
            raise

    async def note(self, slot: UUID, ref: str) -> None:
        """Remember the sandbox."""
        await self._call(_execute, "UPDATE jobs_sandboxslot SET ref = %s WHERE id = %s", [ref, slot])

    async def renew(self, slots: Sequence[UUID]) -> None:
        """Prolong."""
        await self._call(
            _execute,
            "UPDATE jobs_sandboxslot SET expires_at = statement_timestamp() + %s * interval '1 second'"
            " WHERE id = ANY(%s::uuid[]) AND parked_at IS NULL",
            [SLOT_SECONDS, list(slots)],
        )

    async def park(self, slot: UUID) -> None:
        """Do not count it."""
        await self._call(
            _execute,
            "UPDATE jobs_sandboxslot SET parked_at = statement_timestamp() WHERE id = %s",
            [slot],
        )

    async def release(self, *, slot: UUID | None = None, ref: str = "") -> None:
        """Forget it."""
        await self._call(
            _execute,
            "DELETE FROM jobs_sandboxslot WHERE id = %s OR (provider = %s AND ref = %s AND ref <> '')",
            [slot, self.provider, ref],
        )

    async def cool_down(self) -> None:
        """Stop everybody for a moment."""
        await self._call(
            _execute,
            "UPDATE jobs_sandboxbudget SET tokens = 0, refilled_at = statement_timestamp() + %s * interval '1 second'"
            " WHERE provider = %s",
            [COOL_SECONDS, self.provider],
        )

    async def is_turn_to_sweep(self) -> bool:
        """Whoever asks first in a minute."""
        return await self._call(
            _execute,
            "UPDATE jobs_sandboxbudget SET swept_at = statement_timestamp() WHERE provider = %s"
            " AND (swept_at IS NULL OR swept_at < statement_timestamp() - %s * interval '1 second')",
            [self.provider, SWEEP_SECONDS],
        ) > 0  # fmt: skip

    async def orphans(self, found: Sequence[Found]) -> set[str]:
        """No slot that lives, no job that may wake it."""
        return await self._call(self._orphans, found)

    async def close(self) -> None:
        """The thread closes its own connection."""
        await asyncio.get_running_loop().run_in_executor(self.thread, lambda: connection.close())
        self.thread.shutdown(wait=False)

    # --- in the thread ---

    def _installation(self) -> UUID:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO jobs_sandboxbudget (provider, installation, tokens) VALUES (%s, %s, %s)"
                " ON CONFLICT (provider) DO NOTHING",
                [self.provider, uuid4(), self._burst],
            )
            cursor.execute("SELECT installation FROM jobs_sandboxbudget WHERE provider = %s", [self.provider])
            (installation,) = cursor.fetchone()
        return UUID(str(installation))

    @property
    def _burst(self) -> float:
        """So many may begin at the same instant."""
        return max(1.0, self.per_second)

    def _take(self, slot: UUID, job_id: UUID, attempt: int) -> float | None:
        """None when the slot is ours; else the seconds after which to ask again."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(TURN, {"provider": self.provider, "rate": self.per_second, "burst": self._burst})
            row = cursor.fetchone()
            if row is None:
                self._installation()
                return 0.0
            tokens, cooling = row
            if tokens < 1:
                return float(max(cooling, (1 - tokens) / self.per_second))
            cursor.execute(TAKE, {"slot": slot, "provider": self.provider, "job_id": job_id, "attempt": attempt,
                                  "seconds": SLOT_SECONDS, "most": self.most})  # fmt: skip
            if cursor.rowcount == 0:
                return LONGEST_PAUSE / 2
            cursor.execute(
                "UPDATE jobs_sandboxbudget SET tokens = %s, refilled_at = clock_timestamp() WHERE provider = %s",
                [tokens - 1, self.provider],
            )
            return None

    def _orphans(self, found: Sequence[Found]) -> set[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM jobs_sandboxslot WHERE provider = %s AND parked_at IS NULL"
                " AND expires_at < statement_timestamp()",
                [self.provider],
            )
            cursor.execute(
                DELETE_PARKED, {"provider": self.provider, "refs": [one.ref for one in found if one.paused]}
            )
            cursor.execute(
                ORPHANS,
                {
                    "provider": self.provider,
                    "refs": [one.ref for one in found],
                    "jobs": [one.job_id for one in found],
                    "attempts": [one.attempt for one in found],
                },
            )
            return {row[0] for row in cursor.fetchall()}


# One row per provider: whoever holds it decides alone, so count and rate are exact over all processes.
TURN = """
SELECT least(%(burst)s, tokens + %(rate)s * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at))),
       greatest(0, extract(epoch FROM refilled_at - clock_timestamp()))
  FROM jobs_sandboxbudget WHERE provider = %(provider)s FOR UPDATE
"""
TAKE = """
INSERT INTO jobs_sandboxslot (id, provider, job_id, attempt, ref, expires_at)
SELECT %(slot)s, %(provider)s, %(job_id)s, %(attempt)s, '', statement_timestamp() + %(seconds)s * interval '1 second'
 WHERE (SELECT count(*) FROM jobs_sandboxslot
         WHERE provider = %(provider)s AND parked_at IS NULL AND expires_at > statement_timestamp()) < %(most)s
"""
# A sandbox may sleep for a job that waits, or that is about to run again; one that E2B forgot sleeps no more.
DELETE_PARKED = """
DELETE FROM jobs_sandboxslot AS slot
 WHERE slot.provider = %(provider)s AND slot.parked_at < statement_timestamp() - interval '1 minute'
   AND (NOT slot.ref = ANY(%(refs)s::text[])
        OR NOT EXISTS (SELECT 1 FROM jobs_job AS job
                        WHERE job.id = slot.job_id AND job.status IN ('waiting_for_input', 'queued', 'scheduled')))
   AND NOT EXISTS (SELECT 1 FROM jobs_sandboxslot AS newer
                    WHERE newer.job_id = slot.job_id AND newer.parked_at IS NULL
                      AND newer.expires_at > statement_timestamp())
"""
# A slot without a ref is one whose sandbox is being made, or woken.
ORPHANS = """
SELECT given.ref
  FROM unnest(%(refs)s::text[], %(jobs)s::uuid[], %(attempts)s::int[]) AS given(ref, job_id, attempt)
 WHERE NOT EXISTS (
    SELECT 1 FROM jobs_sandboxslot AS slot
     WHERE slot.provider = %(provider)s
       AND (slot.ref = given.ref OR (slot.ref = '' AND slot.job_id = given.job_id AND slot.attempt = given.attempt))
       AND (slot.expires_at > statement_timestamp() OR slot.parked_at IS NOT NULL))
"""


def _execute(sql: str, parameters: Sequence[Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return int(cursor.rowcount)
