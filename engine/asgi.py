"""The ASGI application: HTTP over the bridge or, where it waits or streams, asynchronous; WebSockets by Channels."""

import asyncio
import logging
import os
import time

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django_wsgi = get_wsgi_application()  # sets Django up; the imports below need it

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402

from engine import meters, tracing  # noqa: E402
from engine.bridge import (  # noqa: E402
    BODY,
    ROUTE,
    SPAN,
    ASGIApplication,
    Bridge,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    send_response,
    take_body,
)
from engine.health import silence  # noqa: E402
from engine.logs import log_fields  # noqa: E402
from engine.middleware import REQUEST_ID_HEADER, request_id  # noqa: E402
from engine.origins import OriginCheck  # noqa: E402
from engine.proxies import client_address  # noqa: E402
from engine.routing import WEBSOCKET_ROUTES, async_app_for  # noqa: E402

ID_HEADER = REQUEST_ID_HEADER.lower().encode()
access = logging.getLogger("engine.access")
# Probes and files would fill a collector with nothing.
UNTRACED = ("/health/", "/static/")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

bridge = Bridge(django_wsgi, threads=settings.ENGINE_WEB_THREADS)
# Probes have threads of their own: a database that hangs keeps all others busy, and is no reason to kill this process.
probes = {"/health/live": Bridge(django_wsgi, threads=1), "/health/ready": Bridge(django_wsgi, threads=1)}
PROBE_SECONDS = 2.0
websockets: ASGIApplication = OriginCheck(AuthMiddlewareStack(URLRouter(WEBSOCKET_ROUTES)))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Give the request its id, and to whoever answers such requests."""
    if scope["type"] == "lifespan":
        return
    given = request_id(dict(scope["headers"]).get(ID_HEADER, b"").decode("latin-1"))
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] != ID_HEADER]
    scope["headers"].append((ID_HEADER, given.encode()))
    scope["request_id"] = given
    scope["client"] = client_address(scope)
    with log_fields(request=given):
        if scope["type"] == "websocket":
            await websockets(scope, receive, send)
        else:
            with request_span(scope) as scope[SPAN]:
                await answer(scope, receive, Reporter(scope, send))


def request_span(scope: Scope) -> tracing.Span:
    """The span of one request: never its address, which holds ids, and where links answer questions, secrets."""
    if not tracing.is_on() or scope["path"].startswith(UNTRACED):
        return tracing.NO_SPAN
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    about = {
        "http.request.method": method,
        "url.scheme": scope.get("scheme", "http"),
        "engine.request.id": scope["request_id"],
    }
    given = b",".join(value for name, value in scope["headers"] if name == b"traceparent")
    return tracing.span(method, about, kind="server", parent=given.decode("latin-1"))


async def answer(scope: Scope, receive: Receive, reporter: "Reporter") -> None:
    """Answer one HTTP request. A stream that is cancelled because the server stops ends as a whole response."""
    app = async_app_for(scope)
    try:
        if scope["path"] in probes:
            await answer_probe(scope, receive, reporter)
        elif app is None:
            await bridge(scope, receive, reporter)
        else:
            await app(scope, replayed(scope, receive), reporter)
    except ClientGone:
        reporter.status = 499  # as nginx counts them; nobody receives it
    except asyncio.CancelledError:
        await reporter.finish()
        raise
    finally:
        reporter.log()


async def answer_probe(scope: Scope, receive: Receive, reporter: "Reporter") -> None:
    """Answer a probe in time; one that the database keeps waiting is told so."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await probes[scope["path"]](scope, receive, reporter)
    except TimeoutError:
        if reporter.status:
            raise ClientGone from None  # it was the client who let us wait
        await send_response(reporter, silence())


class Reporter:
    """Sends on what an application answers, with the request's id, and logs one line for it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.send = scope, send
        self.status = 0
        self.open = False
        self.started = time.monotonic()

    async def __call__(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status, self.open = message["status"], True
            headers = list(message.get("headers", []))
            if not any(name.lower() == ID_HEADER for name, _ in headers):
                headers.append((ID_HEADER, self.scope["request_id"].encode()))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.open = message.get("more_body", False)
        await self.send(message)

    async def finish(self) -> None:
        """End a response that has begun."""
        if self.open:
            await self({"type": "http.response.body", "body": b"", "more_body": False})

    def log(self) -> None:
        """One line: method, path, status, milliseconds. No query string: it may hold what is not ours to keep."""
        took = time.monotonic() - self.started
        method, path = self.scope["method"], self.scope["path"]
        access.info("%s %s %s %.1f ms", method, path, self.status or "-", took * 1000)
        self.tell(self.scope[SPAN])
        waited = "url_route" in self.scope  # a stream, or a request that waits: its time says nothing
        route = self.scope.get(ROUTE, "stream" if waited else "none")
        meters.observe_http(
            f"{method if method in METHODS else 'OTHER'} {route}", self.status, None if waited else took
        )

    def tell(self, span: tracing.Span) -> None:
        """What became of the request, in the words of OpenTelemetry's conventions for HTTP."""
        route = self.scope.get(ROUTE)
        if route is not None:
            method = self.scope["method"] if self.scope["method"] in METHODS else "HTTP"
            span.rename(f"{method} {route}")
        span.note({"http.route": route, "http.response.status_code": self.status or None})
        if self.status >= 500 or not self.status:
            span.failed(str(self.status or "cut off"))


def replayed(scope: Scope, receive: Receive) -> Receive:
    """A `receive` that yields the body which our server handed over as a file (see engine.bridge.BODY).

    Unless somebody has taken the file: an application that asks the bridge first leaves it to the bridge.
    """

    async def receive_body_first() -> Message:
        if BODY not in scope.get("extensions", {}):
            return await receive()
        with await take_body(scope, receive) as body:
            return {"type": "http.request", "body": body.read(), "more_body": False}

    return receive_body_first
