"""Requests that wait: a job's events as a stream (SSE), and `Prefer: wait=N` on jobs. None of them holds a thread.

Both ask Django first, over the bridge, as any client would: keys, scopes, rate limits, filters and errors are those of
the plain request. What follows then is done here, on the event loop, with the hub's help.
"""

import asyncio
import re
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from django.db import Error as DatabaseTrouble
from rest_framework.renderers import JSONRenderer

from engine.bridge import ClientGone, Headers, Message, Receive, Scope, Send, send_whole
from engine.errors import EngineError
from engine.gate import parse_json
from engine.problems import problem
from jobs import watching
from jobs.hub import AccessEnded, HubFailed, Line, Watch, hub
from jobs.models import Job
from jobs.serializers import JobSerializer

EVENT_STREAM = b"text/event-stream"
# A comment after so much silence keeps proxies from closing the connection.
PING_SECONDS = 15.0
# What a browser waits before it connects again.
RETRY_MILLISECONDS = 1_000
# A longer wait is cut to this, and Preference-Applied says so: proxies close what is silent for longer.
MOST_WAIT_SECONDS = 60

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def wants_stream(headers: dict[bytes, bytes]) -> bool:
    """Whether the client asks for server-sent events."""
    return EVENT_STREAM in headers.get(b"accept", b"").lower()


def wants_wait(headers: dict[bytes, bytes]) -> bool:
    """Whether the client prefers an answer that comes later."""
    return wait_seconds(headers) > 0


def wait_seconds(headers: dict[bytes, bytes]) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), within our bounds; 0 if there is no such preference."""
    found = re.search(rb"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", headers.get(b"prefer", b"").lower())
    return min(int(found[1]), MOST_WAIT_SECONDS) if found else 0


# --- asking Django ---


@dataclass
class Reply:
    """What Django answered."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""

    async def take(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def forward(self, send: Send) -> None:
        """Answer the client with it."""
        await send_whole(send, self.status, self.headers, self.body)


async def ask_django(scope: Scope, receive: Receive) -> Reply:
    """The answer to a request, over the bridge."""
    from engine.asgi import bridge  # it imports us

    reply = Reply()
    await bridge(scope, receive, reply.take)
    return reply


async def send_problem(scope: Scope, send: Send, error: EngineError) -> None:
    """Answer with an error of ours."""
    document = problem(error, None, scope["request_id"])
    headers = [(name.lower().encode(), value.encode()) for name, value in document.items()]
    await send_whole(send, document.status_code, headers, document.content)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work unless the client leaves first; raises ClientGone then."""
    leaving, working = asyncio.create_task(_gone(receive)), asyncio.create_task(work)
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working})  # to its end: it gives back what it holds
    if working.cancelled():
        raise ClientGone("The client closed the connection")
    working.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nobody wants


# --- events ---


@dataclass(frozen=True)
class Wanted:
    """Which events a stream sends."""

    after: int
    level: frozenset[str]
    source: frozenset[str]
    type: frozenset[str]

    def takes(self, line: Line) -> bool:
        """Whether no filter holds this one back."""
        return (
            (not self.level or line.level in self.level)
            and (not self.source or line.source in self.source)
            and (not self.type or line.type in self.type)
        )


async def job_events(scope: Scope, receive: Receive, send: Send) -> None:
    """GET /api/v1/jobs/ID/logs as `text/event-stream`.

    Each event has its `seq` as id; a client that was cut off goes on from there by `Last-Event-ID`. After the job's
    last event comes one named `end`; a browser that connects again nonetheless gets 204, which stops it.
    """
    headers = dict(scope["headers"])
    resumed = headers.get(b"last-event-id", b"").decode("latin-1").strip()
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if resumed:
        query = [pair for pair in query if pair[0] != "after"] + [("after", resumed)]
    checked = await ask_django(_page_request(scope, query), receive)
    if checked.status != HTTPStatus.OK:
        await checked.forward(send)
        return
    job_id = UUID(scope["url_route"]["kwargs"]["job_id"])
    try:
        watch = await _watch(scope, job_id, after=_wanted(query).after)
    except EngineError as error:  # what the key may has changed since a moment ago
        await send_problem(scope, send, error)
        return
    try:
        headers_kept = [pair for pair in checked.headers if pair[0] not in _OF_THE_PAGE]
        stream = _stream(send, headers_kept, watch, _wanted(query), resumed=bool(resumed))
        await while_connected(receive, stream)
    finally:
        watch.close()


def _page_request(scope: Scope, query: list[tuple[str, str]]) -> Scope:
    """The same request for a page of one event: it is checked in the same way and refused by the same errors."""
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"accept", b"if-none-match")]
    limited = [pair for pair in query if pair[0] != "limit"] + [("limit", "1")]
    return {
        **scope,
        "headers": [*headers, (b"accept", b"application/json")],
        "query_string": urlencode(limited).encode(),
    }


def _wanted(query: list[tuple[str, str]]) -> Wanted:
    """The filters, after Django has checked them."""

    def listed(name: str) -> frozenset[str]:
        return frozenset(part for key, text in query if key == name for part in text.split(","))

    after = next((int(text) for key, text in query if key == "after"), 0)
    return Wanted(after, level=listed("level"), source=listed("source"), type=listed("type"))


async def _watch(scope: Scope, job_id: UUID, *, after: int) -> Watch:
    authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")

    def look() -> watching.View:
        return watching.view(job_id, watching.key_access(authorization, watching.address(scope)))

    view = await hub.in_thread(look)
    return hub.follow(job_id, after=after, head=view.head, access=view.access)


# Headers of the checked page that are not the stream's: all others, rate limits and policies, are.
_OF_THE_PAGE = frozenset({b"content-type", b"content-length", b"etag", b"cache-control"})


async def _stream(send: Send, headers: Headers, watch: Watch, wanted: Wanted, *, resumed: bool) -> None:
    clock = asyncio.get_running_loop().time
    first = await watch.lines(patience=0.2 if resumed else 0)
    if resumed and watch.is_ended and not first:
        await send_whole(send, HTTPStatus.NO_CONTENT, headers, b"")
        return
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers + STREAM_HEADERS})
    await _send_text(send, f"retry: {RETRY_MILLISECONDS}\n\n" + _frames(first, wanted))
    sent_at = clock()
    try:
        while not watch.is_ended:
            lines = await watch.lines(patience=max(0.0, sent_at + PING_SECONDS - clock()))
            text = _frames(lines, wanted)
            if text or clock() >= sent_at + PING_SECONDS:
                await _send_text(send, text or ": ping\n\n")
                sent_at = clock()
        await _send_text(send, f'event: end\ndata: {{"status": "{watch.final_status}"}}\n\n')
    except AccessEnded:
        await _send_text(send, "event: access_ended\ndata: {}\n\n")
    except HubFailed:
        pass  # cut off: the client connects again by itself, and loses nothing
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _frames(lines: Iterable[Line], wanted: Wanted) -> str:
    return "".join(f"id: {line.seq}\ndata: {line.text}\n\n" for line in lines if wanted.takes(line))


async def _send_text(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


# --- waiting ---


async def answer_later(scope: Scope, receive: Receive, send: Send) -> None:
    """A request whose answer is a job, with `Prefer: wait=N`: answered when the job has ended, asks, or time is up.

    Whatever goes wrong while waiting, the answer that Django gave stands.
    """
    reply = await ask_django(scope, receive)
    seconds = wait_seconds(dict(scope["headers"]))
    if reply.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        await reply.forward(send)
        return
    with suppress(asyncio.CancelledError):  # the server stops: answer now
        await while_connected(receive, _wait(scope, reply, seconds))
    await reply.forward(send)


async def _wait(scope: Scope, reply: Reply, seconds: int) -> None:
    """Put the job as it is at the end of the wait into the reply."""
    job_id = UUID(parse_json(reply.body)["id"])
    authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    with suppress(EngineError, DatabaseTrouble, AccessEnded, HubFailed):
        access = await hub.in_thread(watching.key_access, authorization, watching.address(scope))
        await _settled(job_id, access, seconds)
        reply.body = await hub.in_thread(_rendered, job_id, access)
        # The reply's own length and ETag were those of an earlier state.
        reply.headers = [pair for pair in reply.headers if pair[0] not in (b"content-length", b"etag")]
        reply.headers += [
            (b"content-length", str(len(reply.body)).encode()),
            (b"preference-applied", b"wait=%d" % seconds),
        ]


async def _settled(job_id: UUID, access: watching.Access, seconds: int) -> None:
    """Return when the job has ended, asks a person, or the time is up."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    view = await hub.in_thread(watching.view, job_id, access)
    if is_settled(view.job):
        return
    watch = hub.follow(job_id, after=view.head, head=view.head, access=access)
    try:
        while clock() < deadline and not watch.is_ended:
            for line in await watch.lines(patience=deadline - clock()):
                # An answer may have come already: the event alone does not say that the job still waits.
                if line.type == "job.waiting" and is_settled(
                    (await hub.in_thread(watching.view, job_id, access)).job
                ):
                    return
    finally:
        watch.close()


def is_settled(job: Job) -> bool:
    """Whether it is the client's turn: the job has ended, or asks a person."""
    return job.is_final or (job.status == Job.Status.WAITING_FOR_INPUT and job.status_reason == "question")


def _rendered(job_id: UUID, access: watching.Access) -> bytes:
    """The job as GET would answer it."""
    body: bytes = JSONRenderer().render(JobSerializer(watching.view(job_id, access).job).data)
    return body
