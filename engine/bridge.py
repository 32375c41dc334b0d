"""HTTP over one hop: the whole request goes to Django's WSGI handler in one of a few lasting threads.

Django's own ASGI handler starts threads for each request and changes threads at each middleware (measured: three
to nine times fewer requests a second). In lasting threads database connections persist, and their number is bounded.
"""

import asyncio
import contextvars
import io
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, Any, BinaryIO, TypeAlias, cast
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.http import HttpResponse
from django.utils.http import parse_header_parameters

from engine.problems import Unavailable, problem

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

# Our server hands over the body as a file under this name in scope["extensions"]: it is on disk if it is large.
BODY = "engine.body"
# Under this name in request.META lies the ASGI scope, and in the scope, once it is known, the route (see meters).
SCOPE, ROUTE = "engine.scope", "engine.route"
# And in the scope lies the span of the request (see engine.tracing).
SPAN = "engine.span"
IN_MEMORY_BYTES = 128 * 1024
CHUNK_BYTES = 256 * 1024
# Requests that may wait for a thread. More would only wait until their clients give up.
MOST_WAITING = 1000
WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class ClientGone(OSError):
    """The client closed the connection while it was being answered, or stopped reading."""


@dataclass
class Reply:
    """What Django answered; `chunks` is a stream to be closed, or the whole body in one piece."""

    status: int
    headers: Headers
    chunks: "Iterable[bytes]"
    streams: bool

    def close(self) -> None:
        """Free what the response holds: files, and through Django's signal the thread's stale connections."""
        close = getattr(self.chunks, "close", None)
        if close is not None:
            close()


class FileBody(Iterator[bytes]):
    """`wsgi.file_wrapper`: a file to send, in chunks larger than Django's 4 kB."""

    def __init__(self, file: IO[bytes], block_size: int = CHUNK_BYTES) -> None:
        self.file = file

    def __next__(self) -> bytes:
        """The next chunk."""
        chunk = self.file.read(CHUNK_BYTES)
        if not chunk:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Close the file, and with it the response (Django ties them)."""
        self.file.close()


class Bridge:
    """An ASGI application for `http` that answers with a WSGI one, on a bounded pool of threads."""

    def __init__(self, wsgi: Callable[..., Iterable[bytes]], *, threads: int) -> None:
        self.wsgi = wsgi
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="web")
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A response that streams holds a thread only while a chunk is being made."""
        if self.waiting >= MOST_WAITING:
            busy = problem(Unavailable("Too many requests wait already"), None, scope.get("request_id", ""))
            await send_response(send, busy)
            return
        body = await take_body(scope, receive)
        reply = await self._in_thread(self._respond, environ_for(scope, body), finally_=body.close)
        if reply.streams:
            await self._stream(reply, send)
        else:
            await send_whole(send, reply.status, reply.headers, b"".join(reply.chunks))

    def _respond(self, environ: dict[str, Any]) -> Reply:
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            started[:] = int(status[:3]), encoded

        chunks = self.wsgi(environ, start_response)
        if isinstance(chunks, FileBody) or getattr(chunks, "streaming", False):
            return Reply(started[0], started[1], chunks, streams=True)
        reply = Reply(started[0], started[1], chunks, streams=False)
        try:
            content = b"".join(chunks)
        finally:
            reply.close()
        has_length = any(name == b"content-length" for name, _ in reply.headers)
        if not has_length and environ["REQUEST_METHOD"] != "HEAD" and reply.status not in WITHOUT_BODY:
            reply.headers.append((b"content-length", str(len(content)).encode()))
        return Reply(reply.status, reply.headers, [content], streams=False)

    async def _stream(self, reply: Reply, send: Send) -> None:
        chunks = iter(reply.chunks)
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            while chunk := await self._in_thread(next, chunks, b""):
                # Returns when the client has room for more: nothing is read ahead of a slow reader.
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await asyncio.shield(self._in_thread(reply.close))

    async def _in_thread(
        self, work: Callable[..., Any], *arguments: Any, finally_: Callable[[], None] | None = None
    ) -> Any:
        self.waiting += 1
        # In the request's context: what is logged in the thread, by whomever, names the request; spans join its trace.
        future: Future[Any] = self.pool.submit(contextvars.copy_context().run, work, *arguments)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # The client has gone. The thread goes on to its end; nobody will close what it returns.
            future.add_done_callback(close_result)
            raise
        finally:
            self.waiting -= 1
            if finally_ is not None:
                future.add_done_callback(lambda _: finally_())


def close_result(future: "Future[Any]") -> None:
    """Close a reply that came too late."""
    if not future.cancelled() and future.exception() is None and isinstance(future.result(), Reply):
        future.result().close()


async def take_body(scope: Scope, receive: Receive) -> BinaryIO:
    """The request's body as a file at its beginning, in memory if it is small. Whoever takes it closes it."""
    handed_over = scope.get("extensions", {}).pop(BODY, None)
    if handed_over is not None:
        return cast(BinaryIO, handed_over)
    body = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(settings.FILE_UPLOAD_TEMP_DIR))  # noqa: SIM115
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            body.close()
            raise ClientGone
        body.write(message.get("body", b""))
        more = message.get("more_body", False)
    body.seek(0)
    return cast(BinaryIO, body)


def environ_for(scope: Scope, body: BinaryIO) -> dict[str, Any]:
    """The WSGI environment (PEP 3333) of an ASGI request whose body lies in `body`."""
    length = body.seek(0, io.SEEK_END)
    body.seek(0)
    # Bytes in latin-1's clothes, as PEP 3333 wants; from raw_path, since `path` has lost what was not UTF-8.
    path = unquote_to_bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    server = scope.get("server") or ("localhost", 80)
    client = scope.get("client") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "CONTENT_LENGTH": str(length),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileBody,
        SCOPE: scope,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").upper().replace("-", "_"), raw_value.decode("latin-1")
        if name in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            continue  # the body is here as a whole, however it came
        key = name if name == "CONTENT_TYPE" else f"HTTP_{name}"
        if key in environ:
            value = f"{environ[key]}{'; ' if name == 'COOKIE' else ','}{value}"
        environ[key] = value
    if not is_readable(environ.get("CONTENT_TYPE", "")):
        environ["CONTENT_TYPE"] = "application/octet-stream"  # and so a 415 wherever a body is read
    return environ


def is_readable(content_type: str) -> bool:
    """Whether Django can take the header's parameters apart: it does so before anybody could answer its ValueError."""
    try:
        parse_header_parameters(content_type)
    except ValueError:
        return False
    return True


async def send_response(send: Send, response: HttpResponse) -> None:
    """Send a response of Django's that was made here, past its middleware."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
    await send_whole(send, response.status_code, headers, response.content)


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
