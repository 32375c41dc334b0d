"""Waiting for whichever of several things happens first."""

import asyncio
from typing import Any


async def first(*happenings: asyncio.Event | asyncio.Task[Any], seconds: float | None = None) -> None:
    """Wait for one of these, at most so long. Tasks among them go on."""
    waits: set[asyncio.Task[Any]] = set()
    for item in happenings:
        waits.add(item if isinstance(item, asyncio.Task) else asyncio.ensure_future(item.wait()))
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await stop(*waits.difference(happenings))


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these tasks and wait until they have ended; what they raised is passed over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
