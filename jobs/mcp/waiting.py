"""Calls that wait, on the event loop: none of them holds a thread, and a client that listens hears how far it is."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db import Error as DatabaseTrouble

from engine.bridge import Receive, Scope, Send
from engine.errors import EngineError
from engine.gate import parse_json
from engine.problems import NotAuthenticated
from jobs import watching
from jobs.hub import AccessEnded, HubFailed, Line, hub
from jobs.mcp import frames
from jobs.mcp.methods import Waiting, waited
from jobs.mcp.views import WAIT_HEADER
from jobs.streams import EVENT_STREAM, STREAM_HEADERS, Reply, ask_django, is_settled, while_connected

# Clients give up on calls that are silent for long.
BEAT_SECONDS = 5.0

_WAIT = WAIT_HEADER.lower().encode()
_OF_THE_ANSWER = (b"content-type", b"content-length", b"cache-control")

Beat = Callable[[float, str], Awaitable[None]]


async def mcp(scope: Scope, receive: Receive, send: Send) -> None:
    """POST /mcp: as Django answers it, after a wait where it says so."""
    reply = await ask_django(scope, receive)
    wait = next((value for name, value in reply.headers if name == _WAIT), None)
    if wait is None:
        await reply.forward(send)
        return
    reply.headers = [pair for pair in reply.headers if pair[0] != _WAIT]
    waiting = Waiting(**parse_json(wait))
    answer = Late(scope, reply, waiting)
    if EVENT_STREAM in dict(scope["headers"]).get(b"accept", b"").lower():
        await while_connected(receive, answer.stream(send))
    else:
        await while_connected(receive, answer.wait(silent))
        reply.headers = [pair for pair in reply.headers if pair[0] != b"content-length"]
        reply.headers.append((b"content-length", str(len(reply.body)).encode()))
        await reply.forward(send)


async def silent(seconds: float, message: str) -> None:
    """Nobody listens before the answer."""


class Late:
    """An answer that is given when its job has ended or asks, or time is up."""

    def __init__(self, scope: Scope, reply: Reply, waiting: Waiting) -> None:
        self.scope, self.reply, self.waiting = scope, reply, waiting

    async def wait(self, beat: Beat) -> None:
        """Bring the reply up to date. Whatever goes wrong meanwhile, the answer that Django gave stands."""
        with suppress(EngineError, DatabaseTrouble, AccessEnded, HubFailed):
            authorization = dict(self.scope["headers"]).get(b"authorization", b"").decode("latin-1")
            access = await hub.in_thread(watching.key_access, authorization, watching.address(self.scope))
            with suppress(asyncio.CancelledError):  # the server stops: answer now
                await settled(UUID(self.waiting.job_id), access, self.waiting.seconds, beat)
            self.reply.body = await hub.in_thread(self._rendered, access)

    def _rendered(self, access: watching.Access) -> bytes:
        by = access.caller()
        if by is None:
            raise NotAuthenticated
        result = waited(self.waiting, replace(by, via="mcp"))
        waiting = self.waiting
        return frames.dumps(frames.success(waiting.id, result, is_stateless=waiting.is_stateless))

    async def stream(self, send: Send) -> None:
        """The same as server-sent events: notices while it waits, then the answer."""
        kept = [pair for pair in self.reply.headers if pair[0] not in _OF_THE_ANSWER]
        headers = [*kept, *STREAM_HEADERS]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})

        async def beat(seconds: float, message: str) -> None:
            await send(part(self._notice(seconds, message)))

        await self.wait(beat)
        await send(part(event(self.reply.body)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _notice(self, seconds: float, message: str) -> bytes:
        token = self.waiting.progress_token
        if token is None:
            return b": waiting\n\n"  # keeps the connection open
        params: dict[str, Any] = {
            "progressToken": token,
            "progress": round(seconds, 1),
            "total": self.waiting.seconds,
            "message": message,
        }
        notice = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
        return event(frames.dumps(notice))


def event(frame: bytes) -> bytes:
    """A frame as one server-sent event; JSON as we write it has no line breaks."""
    return b"event: message\ndata: " + frame + b"\n\n"


def part(body: bytes) -> dict[str, Any]:
    """A piece of an answer that goes on."""
    return {"type": "http.response.body", "body": body, "more_body": True}


async def settled(job_id: UUID, access: watching.Access, seconds: float, beat: Beat) -> None:
    """Return when the job has ended, asks a person, or the time is up; every BEAT_SECONDS, say where it is."""
    clock = asyncio.get_running_loop().time
    began = clock()
    deadline, next_beat = began + seconds, began + BEAT_SECONDS
    view = await hub.in_thread(watching.view, job_id, access)
    if is_settled(view.job):
        return
    message = f"The job is {view.job.status}"
    watch = hub.follow(job_id, after=view.head, head=view.head, access=access)
    try:
        while clock() < deadline and not watch.is_ended:
            for line in await watch.lines(patience=max(0.0, min(deadline, next_beat) - clock())):
                message = told(line) or message
                # An answer may have come already: the event alone does not say that the job still waits.
                if line.type == "job.waiting" and is_settled(
                    (await hub.in_thread(watching.view, job_id, access)).job
                ):
                    return
            if clock() >= next_beat:
                await beat(clock() - began, message)
                next_beat = clock() + BEAT_SECONDS
    finally:
        watch.close()


def told(line: Line) -> str:
    """What an event says of where the job is, or nothing."""
    if line.type == "job.progress":
        return str(json.loads(line.text)["message"])[:200]
    return f"The job: {line.type.removeprefix('job.')}" if line.type.startswith("job.") else ""
