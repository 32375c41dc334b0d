"""`/ws/v1/jobs/ID?after=SEQ`: a job's events over a WebSocket, what is stored first and then what comes.

Each frame is one event, the same JSON object as in GET …/logs. A client that was cut off connects again with the last
`seq` it saw as `after`. How to say who you are: an `Authorization` header; or the subprotocols `engine.v1` and
`bearer.KEY` together; or `ticket=` with a ticket of POST /api/v1/stream-tickets; or, on the dashboard's own pages, the
session. Close codes are the members of `CloseCode`. A client that takes nothing for ENGINE_STALL_SECONDS is cut off.
"""

import asyncio
from enum import IntEnum
from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import Error as DatabaseTrouble

from engine.bridge import ClientGone
from engine.errors import NotFound
from engine.problems import Forbidden, NotAuthenticated, TooManyRequests
from jobs import watching
from jobs.hub import AccessEnded, HubFailed, Watch, hub

# Nothing has to be sent while a job is silent: the server's own pings keep the connection open.
PATIENCE_SECONDS = 3600.0
MOST_AFTER = 2**63 - 1


class CloseCode(IntEnum):
    """Why the server closed a socket."""

    JOB_ENDED = 4000  # the last event has been sent
    RESTARTING = 4001  # sent by engine/server.py: connect again with `after`
    BAD_AFTER = 4400  # not a whole number
    NOT_AUTHENTICATED = 4401  # no key, ticket or session that is accepted, or it no longer is
    FORBIDDEN = 4403  # the scope jobs:read is missing, or the key may not be used from here
    NOT_FOUND = 4404
    TOO_MANY = 4429  # streams of this key or server, or requests of this key
    TRY_AGAIN = 4503  # the database is away, or a fault of ours: connect again with `after`


class JobEventsConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels ships no types
    """Relay one job's events to one client: authorise, follow, forward."""

    channel_layer_alias = "memory"  # a Redis that is away would refuse the handshake, or keep it waiting
    watch: Watch | None = None
    relay: "asyncio.Task[None] | None" = None

    async def connect(self) -> None:
        """Accept, so that the client gets to see the close code, then say no or begin."""
        offered = self.scope.get("subprotocols", [])
        await self.accept(subprotocol=watching.PROTOCOL if watching.PROTOCOL in offered else None)
        query = parse_qs(self.scope["query_string"].decode("ascii", "replace"))
        after = query.get("after", ["0"])[-1]
        if not (after.isascii() and after.isdigit() and len(after) < 20 and int(after) <= MOST_AFTER):
            await self.close(int(CloseCode.BAD_AFTER))
            return
        code = await self._follow(int(after), query.get("ticket", [""])[-1])
        if code is not None:
            await self.close(int(code))  # Autobahn takes nothing that is merely like an int

    async def _follow(self, after: int, ticket: str) -> CloseCode | None:
        """Begin to relay, or say why not."""
        job_id = self.scope["url_route"]["kwargs"]["job_id"]
        try:
            view = await hub.in_thread(lambda: watching.socket_view(self.scope, job_id, ticket=ticket))
            self.watch = hub.follow(job_id, after=after, head=view.head, access=view.access)
        except NotAuthenticated:
            return CloseCode.NOT_AUTHENTICATED
        except Forbidden:
            return CloseCode.FORBIDDEN
        except NotFound:
            return CloseCode.NOT_FOUND
        except TooManyRequests:
            return CloseCode.TOO_MANY
        except DatabaseTrouble:
            return CloseCode.TRY_AGAIN
        self.relay = asyncio.create_task(self._relay(self.watch))
        return None

    async def _relay(self, watch: Watch) -> None:
        code = CloseCode.TRY_AGAIN
        try:
            while not watch.is_ended:
                for line in await watch.lines(patience=PATIENCE_SECONDS):
                    await self.send(text_data=line.text)  # returns when the client has room
            code = CloseCode.JOB_ENDED
        except AccessEnded:
            code = CloseCode.NOT_AUTHENTICATED
        except (ClientGone, HubFailed):
            pass
        finally:
            watch.close()
            await self.close(int(code))  # Autobahn takes nothing that is merely like an int

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Nothing is expected from the client."""

    async def disconnect(self, code: Any) -> None:
        """The client has left, or was closed."""
        if self.relay is not None:
            self.relay.cancel()
        if self.watch is not None:
            self.watch.close()
