"""Sandboxes started ahead, with the usual imports done, so that a job waits for neither. Each is used once."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from .base import Limits, SandboxError
from .local_sandbox import LocalSandbox, first_of

logger = logging.getLogger(__name__)

IMPORTS = ("json", "typing", "datetime", "numpy", "pandas")
MOST_SECONDS = 600.0  # an older one is replaced
LOOK_SECONDS = 5.0
RETRY_SECONDS = 5.0
QUIET_SECONDS = 0.2  # since the last job, before another one is prepared


class WarmPool:
    """Up to `wanted` warm sandboxes; `launch` makes a new one that imports IMPORTS."""

    def __init__(self, wanted: int, launch: Callable[[], Awaitable[LocalSandbox]]) -> None:
        self.wanted, self.launch = wanted, launch
        self.ready: list[LocalSandbox] = []
        self.look = asyncio.Event()  # something has changed
        self.taken_at = 0.0
        self.keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep it full from now on."""
        if self.keeping is None and self.wanted:
            self.keeping = asyncio.create_task(self._keep())

    def take(self, limits: Limits) -> LocalSandbox | None:
        """A warm sandbox whose disk has the right size; all other limits can still be set."""
        self.taken_at = time.monotonic()
        self._drop_stale()
        if not self.ready or limits.disk_mb != Limits.disk_mb:
            return None
        self.look.set()
        return self.ready.pop(0)

    async def close(self) -> None:
        """Prepare no more. Those that are ready are the provider's to close."""
        if self.keeping is not None:
            self.keeping.cancel()
            await asyncio.wait([self.keeping])
        self.ready.clear()

    def _drop_stale(self) -> None:
        for sandbox in list(self.ready):
            stale = time.monotonic() - sandbox.born_at > MOST_SECONDS
            if stale or sandbox.dead.done() or sandbox.ended.done():
                self.ready.remove(sandbox)
                sandbox.begin_close()

    async def _keep(self) -> None:
        """Keep the pool full, one after another: warming takes a core for half a second."""
        complaint = ""
        while True:
            self._drop_stale()
            quiet = time.monotonic() - self.taken_at
            if len(self.ready) >= self.wanted:
                await self._look_again(LOOK_SECONDS)
            elif quiet < QUIET_SECONDS:
                # In a burst a cold start costs its job less than a refill would cost all of them.
                await asyncio.sleep(QUIET_SECONDS - quiet)
            else:
                try:
                    self.ready.append(await self._warm_one())
                    complaint = ""
                except (SandboxError, OSError) as error:
                    if str(error) != complaint:
                        logger.warning("No warm sandbox could be prepared: %s", error)
                    complaint = str(error)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _look_again(self, seconds: float) -> None:
        self.look.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.look.wait()

    async def _warm_one(self) -> LocalSandbox:
        sandbox = await self.launch()
        try:
            await sandbox.wait_ready()
            await first_of(sandbox.warm, sandbox.dead, sandbox.ended)
            if not sandbox.warm.done():
                raise SandboxError(f"it ended while it got ready: {sandbox.last_words()}")
        except BaseException:  # cancellation, too: nothing may stay behind
            await sandbox.close()
            raise
        return sandbox
