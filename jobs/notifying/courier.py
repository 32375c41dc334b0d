"""The courier: each worker has one, and together they empty the outbox. What one leaves, another takes."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from django.db import DatabaseError, InterfaceError

from engine import outgoing
from jobs.notifying import outbox, sending
from jobs.notifying.models import Delivery
from jobs.notifying.outbox import MOST_TO_ONE_HOST, Taken, Tried
from jobs.notifying.services import receiver_is_gone

log = logging.getLogger("engine.courier")

POLL_SECONDS = 1.0
MOST_AT_ONCE = 32

InDatabase = Callable[..., Awaitable[Any]]


class Courier:
    """Takes deliveries that are due and sends them side by side. `in_database` runs a function off the event loop."""

    def __init__(self, in_database: InDatabase) -> None:
        self._in_database = in_database
        self._sending: set[asyncio.Task[None]] = set()
        self._to: Counter[str] = Counter()  # host -> calls in progress

    async def run(self) -> None:
        """Until cancelled; what is being sent then is sent again by whoever takes it next."""
        async with outgoing.client(timeout=sending.TRY_SECONDS) as http:
            try:
                while True:
                    await self._look(http)
                    await self._wait()
            finally:
                for task in self._sending:
                    task.cancel()
                await asyncio.gather(*self._sending, return_exceptions=True)

    async def _look(self, http: httpx.AsyncClient) -> None:
        free = MOST_AT_ONCE - len(self._sending)
        if free <= 0:
            return
        busy = [host for host, calls in self._to.items() if calls >= MOST_TO_ONE_HOST]
        try:
            taken: list[Taken] = await self._in_database(outbox.take, most=free, busy=busy)
        except (DatabaseError, InterfaceError) as error:
            log.warning("Deliveries wait for the database: %s", str(error).strip())
            return
        for one in taken:
            self._to[one.delivery.host] += 1
            task = asyncio.create_task(self._deliver(one, http))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        self._took_all_there_were = len(taken) < free

    _took_all_there_were = True

    async def _wait(self) -> None:
        """Until the next look: at once when one that was sent made room for what was left."""
        if self._sending and not self._took_all_there_were:
            await asyncio.wait(self._sending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(POLL_SECONDS)

    async def _deliver(self, taken: Taken, http: httpx.AsyncClient) -> None:
        try:
            await self._in_database(_note, taken, await self._try(taken, http))
        except (DatabaseError, InterfaceError) as error:
            log.warning("Delivery %s is tried again: %s", taken.delivery.id, str(error).strip())
        finally:
            self._to[taken.delivery.host] -= 1
            if not self._to[taken.delivery.host]:
                del self._to[taken.delivery.host]

    async def _try(self, taken: Taken, http: httpx.AsyncClient) -> Tried:
        try:
            prepared = await self._in_database(sending.prepare, taken)
            return prepared if isinstance(prepared, Tried) else await sending.send(prepared, http)
        except (DatabaseError, InterfaceError):
            raise
        except (
            Exception
        ) as error:  # the outer loop: a fault of ours uses up a try, or it would come back for ever
            log.exception("Delivery %s met a fault of the platform.", taken.delivery.id)
            return Tried(Delivery.State.PENDING, error=f"Engine itself failed: {type(error).__name__}.")


def _note(taken: Taken, tried: Tried) -> None:
    is_ours = outbox.note(taken, tried)
    if is_ours and tried.status == 410 and taken.delivery.channel == Delivery.Channel.WEBHOOK:
        receiver_is_gone(taken.delivery)
    if is_ours and tried.error:
        log.warning(
            "Delivery %s of %s to %s: %s",
            taken.delivery.id,
            taken.delivery.event,
            taken.delivery.host,
            tried.error,
        )
