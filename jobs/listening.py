"""Hearing the hints that `jobs/wakeups.py` sends: over Redis where REDIS_URL is set, else by PostgreSQL's LISTEN.

Either may fall silent for a while without harm (I7): whoever listens looks by itself once a second, too.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseTrouble
from psycopg import sql

from engine.database import direct_dsn
from engine.redis_errors import or_redis_errors

CONNECT_SECONDS = 2.0
RECONNECT_SECONDS = 0.5
# A peer that is gone without a word is found out by a ping this often.
PING_SECONDS = 5.0

log = logging.getLogger("engine.wakeups")


class HintsLost(Exception):
    """Nothing is heard any more."""


@dataclass(frozen=True)
class Hint:
    """`payload` names queues or jobs, with commas between."""

    channel: str
    payload: str


async def hints(*channels: str) -> AsyncGenerator[Hint | None, None]:
    """Each hint as it comes. Never ends: what is lost is connected anew.

    None after each connection: from now on they are heard, and what was said before was not.
    """
    lost = False
    while True:
        try:
            async with contextlib.aclosing(connection(*channels)) as heard:
                async for hint in heard:
                    if hint is None and lost:
                        log.info("Wake-ups are heard again.")
                        lost = False
                    yield hint
        except HintsLost as error:
            if not lost:  # said once, however long it takes
                log.warning("Wake-ups are not heard, polling goes on: %s", error)
            lost = True
        await asyncio.sleep(RECONNECT_SECONDS)


async def connection(*channels: str) -> AsyncGenerator[Hint | None, None]:
    """What is heard over one connection, None first. Raises HintsLost; never ends otherwise."""
    try:
        heard = _by_redis(*channels) if settings.REDIS_URL else _by_listen(*channels)
        async with contextlib.aclosing(heard):  # a connection is closed at once, not when it is collected
            async for hint in heard:
                yield hint
    except or_redis_errors(psycopg.Error, DatabaseTrouble, ImproperlyConfigured, OSError) as error:
        raise HintsLost(str(error).strip() or type(error).__name__) from error
    raise HintsLost("the connection was closed")


async def _by_listen(*channels: str) -> AsyncGenerator[Hint | None, None]:
    dsn = await asyncio.to_thread(direct_dsn)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listener:
        for channel in channels:
            await listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield None
        async for notice in listener.notifies():
            yield Hint(notice.channel, notice.payload)


async def _by_redis(*channels: str) -> AsyncGenerator[Hint | None, None]:
    from redis.asyncio import Redis

    client = Redis.from_url(
        settings.REDIS_URL, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=CONNECT_SECONDS,
        decode_responses=True,
    )  # fmt: skip
    async with client, client.pubsub() as heard:
        await heard.subscribe(*channels)
        yield None
        pinged = False
        while True:
            message = await heard.get_message(timeout=PING_SECONDS)
            if message is None:
                if pinged:
                    raise HintsLost("Redis does not answer")
                await heard.ping()
                pinged = True
                continue
            pinged = False
            if message["type"] == "message":
                yield Hint(message["channel"], message["data"])
