"""Daphne inside our own process, with what it lacks: early size limits, bodies on disk, backpressure, drain.

Daphne alone reads a body whole into memory before anybody may refuse it, buffers answers without bound for a
client that does not read, and drops requests in progress on SIGTERM.
"""

import asyncio
import io
import logging
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, BinaryIO

# Before anything of Twisted: it chooses the reactor when it is imported.
from daphne.server import Server  # isort: skip
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketProtocol
from django.conf import settings
from twisted.internet import reactor as installed_reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.tcp import Server as Connection
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, _GenericHTTPChannelProtocol

from engine.bridge import BODY, IN_MEMORY_BYTES, ASGIApplication, ClientGone, Message, Scope
from engine.errors import EngineError
from engine.middleware import request_id
from engine.problems import BadRequest, BodyTooLarge, HeadTooLarge, InternalError, problem

logger = logging.getLogger("engine.server")
reactor: Any = installed_reactor  # its type is chosen at import time; no checker can follow

CLOSE_RESTARTING = 4001  # Autobahn refuses 1001; clients connect again on any code
MULTIPART_OVERHEAD = 64 * 1024  # boundaries, part headers and plain fields beside the files
LINGER_SECONDS = (
    30.0  # after a refusal the rest of the body is thrown away this long, so that the client can read
)
PROBLEM = b"application/problem+json"
SOCKETS = b"/ws/"


class Backpressure:
    """Lets whoever sends wait until the client has read. The transport calls pause and resume."""

    def __init__(self) -> None:
        self._room = asyncio.Event()
        self._room.set()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._room.clear()

    def resumeProducing(self) -> None:
        """The transport's buffer has room again."""
        self._room.set()

    def stopProducing(self) -> None:
        """The connection is gone: whoever waits finds out when it sends."""
        self._room.set()

    async def room(self) -> None:
        """Return once the client has room for more. Raises ClientGone if it does not read for ENGINE_STALL_SECONDS."""
        if not self._room.is_set():
            try:
                await asyncio.wait_for(self._room.wait(), settings.ENGINE_STALL_SECONDS)
            except TimeoutError:
                raise ClientGone("The client stopped reading") from None


class Request(WebRequest):
    """One HTTP request: refused by size before its body is taken, kept on disk if large."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Twisted would read forms into memory; Django reads them.
        super().__init__(*arguments, parsePOSTFormSubmission=False, **named)
        self.backpressure = Backpressure()
        self.refused = False
        self.received = 0
        self.limit = 0
        self.cut_off: Any = None

    def gotLength(self, length: int | None) -> None:
        """All headers are here and the body comes next; `length` is None if it comes in chunks."""
        # Daphne takes both from whoever sends them.
        self.requestHeaders.removeHeader(b"daphne-root-path")
        content_type = self.requestHeaders.getRawHeaders(b"content-type", [b""])[0]
        multipart = content_type.lower().startswith(b"multipart/form-data")
        self.limit = (
            settings.ENGINE_MAX_UPLOAD_BYTES + MULTIPART_OVERHEAD
            if multipart
            else settings.ENGINE_MAX_BODY_BYTES
        )
        self.content = body_file(length)
        if length is not None and length > self.limit:
            self.refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.received += len(data)
        if self.refused:
            return
        if self.received > self.limit:
            self.refuse()
        else:
            super().handleContentChunk(data)

    def refuse(self) -> None:
        """Answer 413 now and throw away what still comes, for a while.

        Closing at once would reset the connection, and the client, still sending, would never see the answer.
        """
        self.refused = True
        self.requestHeaders.removeHeader(b"expect")  # or Twisted would write 100 Continue after our answer
        self.content = io.BytesIO()
        detail = f"This address takes at most {self.limit} bytes"
        self.channel.transport.write(whole_response(BodyTooLarge(detail), self.given_id()))
        self.channel.transport.loseWriteConnection()
        self.channel.persistent = False
        self.cut_off = reactor.callLater(LINGER_SECONDS, self.channel.transport.abortConnection)

    def given_id(self) -> str:
        """The request's id, for answers that no application makes."""
        return request_id(self.requestHeaders.getRawHeaders(b"x-request-id", [b""])[0].decode("latin-1"))

    def process(self) -> Any:
        """The request is complete."""
        if self.refused:
            return self.channel.loseConnection()
        if not self.uri.startswith(SOCKETS):
            self.requestHeaders.removeHeader(b"upgrade")  # which a server may pass over (RFC 9110, 7.8)
        return super().process()

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        """The status, with the words that belong to it: Twisted knows none of 422, 429 and 431."""
        with suppress(ValueError):
            message = message or HTTPStatus(code).phrase.encode()
        super().setResponseCode(code, message)

    def take_body(self) -> BinaryIO:
        """Hand the body over; Daphne, which would copy it to memory, finds an empty one."""
        body: BinaryIO = self.content
        self.content = io.BytesIO()
        return body

    def handle_reply(self, message: Message) -> None:
        """Write a part of the answer."""
        if message["type"] == "http.response.start":
            self.setHeader(b"date", http_date())
            if self.server.draining:
                self.setHeader(b"connection", b"close")
        elif message.get("more_body") and self.producer is None and self.channel is not None:
            self.registerProducer(self.backpressure, True)
        super().handle_reply(message)

    def finish(self) -> None:
        """The answer is complete."""
        if self.producer is not None and self.channel is not None:
            self.unregisterProducer()
        if self.server.draining and self.channel is not None:
            self.channel.persistent = (
                False  # closed once all is sent; the client's next request goes elsewhere
            )
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        if self.cut_off is not None and self.cut_off.active():
            self.cut_off.cancel()
        self.backpressure.stopProducing()
        super().connectionLost(reason)

    def handle_exception(self, exception: BaseException) -> None:
        """The application failed. An answer that has begun breaks off: its client must not wait for the rest."""
        if self._response_started:
            self.transport.abortConnection()
        else:
            super().handle_exception(exception)

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        """Daphne's own refusals, as problem documents."""
        error: EngineError = (
            InternalError() if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest(body)
        )
        given = self.given_id()
        document = problem(error, None, given)
        length = str(len(document.content)).encode()
        headers = [(b"content-type", PROBLEM), (b"content-length", length), (b"x-request-id", given.encode())]
        self.handle_reply({"type": "http.response.start", "status": document.status_code, "headers": headers})
        self.handle_reply({"type": "http.response.body", "body": document.content})


class Socket(WebSocketProtocol):
    """One WebSocket: sending waits while the client does not read."""

    def connectionMade(self) -> None:
        """The HTTP connection has become ours; so has its transport."""
        self.backpressure = Backpressure()
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.backpressure, True)
        super().connectionMade()


class Channel(HTTPChannel):
    """One HTTP connection. Twisted closes it without a word when a line is too long, and with hardly one otherwise."""

    def lineLengthExceeded(self, line: bytes) -> None:
        """The request line, or a header, is over the limit."""
        self._refuse(HeadTooLarge())

    def _respondToBadRequestAndDisconnect(self) -> None:
        is_large = (
            self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders
        )
        self._refuse(HeadTooLarge() if is_large else BadRequest("This is not HTTP/1.1 (RFC 9112)"))

    def _refuse(self, error: EngineError) -> None:
        """Answer now; what still comes is thrown away, for a while, so that the client can read the answer."""
        transport: Any = self.transport
        self.dataReceived = self.lineReceived = lambda *_: None  # type: ignore[method-assign]  # as Twisted does it
        self.setTimeout(None)  # type: ignore[no-untyped-call]  # Twisted's
        transport.write(whole_response(error, request_id(None)))
        transport.loseWriteConnection()
        reactor.callLater(LINGER_SECONDS, transport.abortConnection)


class Factory(HTTPFactory):
    """Makes our requests instead of Daphne's."""

    def protocol(self) -> Any:
        """Twisted's wrapper, which could speak HTTP/2, around a channel of ours."""
        return _GenericHTTPChannelProtocol(Channel())  # type: ignore[no-untyped-call]  # Twisted's

    def buildProtocol(self, addr: "IPv4Address | IPv6Address") -> Any:
        """One connection."""
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol


class WebServer(Server):
    """Serves one ASGI application on a socket that already listens, until SIGTERM or SIGINT has drained it."""

    def __init__(
        self, application: ASGIApplication, listener: socket.socket, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(
            application,
            endpoints=["none: see _listen"],
            signal_handlers=False,
            ready_callable=self._listen,
            server_name="",
            verbosity=0,
        )
        self.endpoints.clear()
        self.listener = listener
        self.on_ready = on_ready
        self.draining = False

    def _listen(self) -> None:
        """Just before the reactor runs: nothing has been accepted yet."""
        self.ws_factory.protocol = Socket
        # Autobahn cuts off after a second; a slow client still has what came before the close frame to read.
        self.ws_factory.closeHandshakeTimeout = settings.ENGINE_STALL_SECONDS
        self.listener.setblocking(False)
        self.port = reactor.adoptStreamPort(self.listener.fileno(), self.listener.family, Factory(self))
        self.listener.close()  # the port has a descriptor of its own
        loop = asyncio.get_event_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        reactor.callWhenRunning(self.on_ready)

    def _on_signal(self) -> None:
        if self.draining:
            self.stop()  # asked twice: now
        else:
            self.draining = True
            self.drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Take no more connections, let requests finish, close streams and sockets so that clients come again."""
        deadline = time.monotonic() + settings.ENGINE_DRAIN_SECONDS
        await self.port.stopListening().asFuture(asyncio.get_event_loop())
        for connection in open_connections():
            if is_idle(connection.protocol):
                connection.loseConnection()
        for protocol, details in list(self.connections.items()):
            if isinstance(protocol, WebSocketProtocol):
                protocol.closeHandshakeTimeout = 1  # it goes on elsewhere, from what it has read
                protocol.sendClose(CLOSE_RESTARTING)
            elif is_event_stream(protocol) and "application_instance" in details:
                details["application_instance"].cancel()  # it would never end by itself
        # A connection closes when its last answer has been sent, not merely made.
        while (left := open_connections()) and time.monotonic() < deadline:  # noqa: ASYNC110, Twisted has no such event
            await asyncio.sleep(0.02)
        if left:
            logger.warning(
                "%d connections were still open after %s s", len(left), settings.ENGINE_DRAIN_SECONDS
            )
        self.stop()

    def create_application(self, protocol: Any, scope: Scope) -> Any:
        """Start the application for a request or socket; the body goes along as a file."""
        if isinstance(protocol, Request):
            scope["extensions"] = {BODY: protocol.take_body()}
        return super().create_application(protocol, scope)

    async def handle_reply(self, protocol: Any, message: Message) -> None:
        """The application's `send`: returns when the client has room. Raises ClientGone over HTTP if it has left."""
        gone = self.connections.get(protocol, {"disconnected": True}).get("disconnected")
        if gone and isinstance(protocol, Request):
            raise ClientGone("The client closed the connection")
        await super().handle_reply(protocol, message)
        if message.get("more_body") or message["type"] == "websocket.send":
            try:
                await protocol.backpressure.room()
            except ClientGone:
                protocol.transport.abortConnection()
                raise

    def kill_all_applications(self) -> Any:
        """Before the reactor stops: cancel what has not ended. Daphne's own fails on idle connections."""
        for protocol, details in list(self.connections.items()):
            if "application_instance" not in details:
                del self.connections[protocol]
        return super().kill_all_applications()


def open_connections() -> set[Any]:
    """Every connection that a client has open to this process."""
    return {end for end in (*reactor.getReaders(), *reactor.getWriters()) if isinstance(end, Connection)}


def is_idle(protocol: Any) -> bool:
    """Whether a connection is HTTP and waits for its client's next request."""
    channel = getattr(protocol, "_channel", None)
    return channel is not None and not channel.requests


def body_file(length: int | None) -> BinaryIO:
    """Where a body of that length is put: memory if it is small and known to be, else a file without a name."""
    if length is not None and length <= IN_MEMORY_BYTES:
        return io.BytesIO()
    return tempfile.TemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR)


def whole_response(error: EngineError, given_id: str) -> bytes:
    """A complete HTTP/1.1 response, for a request that no application will see."""
    document = problem(error, None, given_id)
    status = HTTPStatus(document.status_code)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {PROBLEM.decode()}\r\n"
        f"Content-Length: {len(document.content)}\r\nX-Request-Id: {given_id}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + document.content


def is_event_stream(protocol: Any) -> bool:
    """Whether this request's answer, if it has begun, is an endless stream."""
    if not isinstance(protocol, Request):
        return False
    content_type: bytes = protocol.responseHeaders.getRawHeaders(b"content-type", [b""])[0]
    return content_type.startswith(b"text/event-stream")


def http_date() -> bytes:
    """Now, as RFC 9110 section 5.6.7 writes it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode("ascii")
